"""The annotator of an experiment on data that is labelled already: the pool's own responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request
from star_jax.data.examples import Example, Prompt


class SimulatedOracle:
    """Answers from a labelled file, and counts what it was asked: `asked` holds the ids, in order."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        """An oracle.

        Args:
          labels: id -> response.
        """
        self._labels = labels
        self.asked: list[str] = []

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """The file's responses; what the file has no response to stays open."""
        known = [request.id for request in requests if request.id in self._labels]
        self.asked.extend(known)
        return [Answer(name, self._labels[name]) for name in known]

    def instructions(self, open_requests: Sequence[Request]) -> str:
        """Says that the pool has to be labelled."""
        return (
            f"{len(open_requests)} examples that were picked have no response in the pool, {open_requests[0].id} among "
            "them: label them there, or set annotator to csv"
        )


def gold_examples(labels: Mapping[str, str], prompts: Sequence[Prompt]) -> list[Example]:
    """Gold responses without labelling, for `scoring.answers = reference` alone.

    That mode scores the pool on labels nobody has bought. It reproduces the released code; it is no way to choose what
    to label.
    """
    return [Example(prompt, labels[prompt.id]) for prompt in prompts]


def oracle(context: AnnotatorContext) -> SimulatedOracle:
    """The oracle of a run."""
    return SimulatedOracle(context.labels)
