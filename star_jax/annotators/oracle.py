"""The annotator of an experiment on data that is labelled already: the pool's own responses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request
from star_jax.data.examples import Example, Prompt


class SimulatedOracle:
    """Answers from a labelled file, and counts what it was asked: `asked` holds the ids, in order."""

    def __init__(self, labels: Mapping[str, str], skipped: Collection[str] = ()) -> None:
        """An oracle.

        Args:
          labels: id -> response.
          skipped: ids of what the file says cannot be labelled.
        """
        self._labels = labels
        self._skipped = frozenset(skipped)
        self.asked: list[str] = []

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """The file's responses; what the file has no response to stays open."""
        answers = self.current(requests)
        self.asked.extend(answer.id for answer in answers)
        return answers

    def review(self) -> None:
        """Nothing: the file was read as a whole."""

    def current(self, requests: Sequence[Request]) -> list[Answer]:
        """As `annotate`, and is not counted."""
        names = [request.id for request in requests]
        known = [name for name in names if name in self._labels or name in self._skipped]
        return [Answer(name, self._labels.get(name)) for name in known]

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
    return SimulatedOracle(context.labels, context.skipped)
