"""Who answers: the only place that holds gold responses of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from star_jax.data.examples import Example, Prompt


class Annotator(Protocol):
    """Gives the response to prompts that were picked: a person, a model, or a file."""

    def label(self, prompts: Sequence[Prompt]) -> list[Example]:
        """One labelled example a prompt, in the order asked."""
        ...


class SimulatedOracle:
    """Answers from a labelled file, and counts what it was asked: `asked` holds the ids, in order."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_id = {example.id: example for example in examples}
        self.asked: list[str] = []

    def label(self, prompts: Sequence[Prompt]) -> list[Example]:
        """The file's examples of these prompts."""
        self.asked.extend(prompt.id for prompt in prompts)
        return [self._by_id[prompt.id] for prompt in prompts]

    def reveal(self, prompts: Sequence[Prompt]) -> list[Example]:
        """Gold responses without labelling, for `scoring.answers = reference` alone.

        That mode scores the pool on labels nobody has bought. It reproduces the released code; it is no
        way to choose what to label.
        """
        return [self._by_id[prompt.id] for prompt in prompts]
