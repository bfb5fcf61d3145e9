"""The annotator protocol: requests go in, the answers that there are so far come out.

Not every request needs an answer yet: a person may have labelled half of a batch. An answer may also say that an
example cannot be labelled; it is then never asked for or trained on again. Asking twice for the same thing is harmless:
the driver asks again whenever a run is taken up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from star_jax.config import SKIP, LabelStudioConfig, LlmConfig, SimulatedConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.skips import is_skip
from star_jax.data.tasks.task import Task
from star_jax.errors import DataError, LabelsNeeded
from star_jax.registry import ANNOTATORS


@dataclass(frozen=True, slots=True)
class Request:
    """An example that somebody is to label.

    Attributes:
      prompt: what the model reads.
      rank: 0 for the one that was picked first.
      score: what it was picked by; None where the strategy has no scores.
      strategy: which strategy asks; None where nobody says.
      uncertainty: the model's on it, in the unit of the strategy's first measure; None where it was not computed.
      guess: what the model answers; None where it was not asked.
      picked_by: the strategy that has picked it, which before the first training is that of `loop.initial`; `random`
        where it was drawn; None where nobody says.

    Example:
      >>> Request(Prompt("a-1", "2 + 2 =")).id
      'a-1'
    """

    prompt: Prompt
    rank: int = 0
    score: float | None = None
    strategy: str | None = None
    uncertainty: float | None = None
    guess: str | None = None
    picked_by: str | None = None

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.prompt.id

    @property
    def text(self) -> str:
        """The prompt's text, as the model reads it."""
        return self.prompt.text

    @property
    def readable(self) -> str:
        """The prompt as a person reads it: without the marks of a chat template."""
        return self.prompt.readable


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request.

    Attributes:
      id: of the prompt.
      response: the label; None where the example was skipped.
      annotator: who gave it; None where nobody says.
      labelled_at: when, ISO 8601; None where nobody says.
      cost: what it cost, in a unit of the annotator's; None where nobody says.
      other: the label of a machine that this one audits, made by somebody who has not seen it; None where none is.

    Example:
      >>> Answer("a-1", None).skipped
      True
    """

    id: str
    response: str | None
    annotator: str | None = None
    labelled_at: str | None = None
    cost: float | None = None
    other: str | None = None

    @property
    def skipped(self) -> bool:
        """Whether the example cannot be labelled."""
        return self.response is None


class Annotator(Protocol):
    """Gives answers to requests: a person, a model, or a file."""

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers that there are so far, in any order; a request without one is still open.

        Raises:
          DataError: what was written cannot be used; the place is named.
        """
        ...

    def instructions(self, open_requests: Sequence[Request]) -> str:
        """One sentence for the person who has to go on: what to do about open requests, and where."""
        ...


@runtime_checkable
class Priced(Protocol):
    """An annotator that knows beforehand what labels cost."""

    def price(self, requests: Sequence[Request]) -> list[float]:
        """What each label is expected to cost, in the unit of `Answer.cost`; nobody is asked."""
        ...


@runtime_checkable
class Rereadable(Protocol):
    """An annotator whose answers are written down somewhere, and may be corrected there after they were used.

    Others are asked once for each example, and never again.
    """

    def review(self) -> None:
        """Reads everything that was written so far.

        Raises:
          DataError: something there cannot be used; every place is named.
        """
        ...

    def current(self, requests: Sequence[Request]) -> list[Answer]:
        """What is written now for examples that were asked for before; nobody is asked, and nothing is written.

        Raises:
          DataError: as `Annotator.annotate`.
        """
        ...


@dataclass(frozen=True)
class AnnotatorContext:
    """What an annotator may need to know of a run.

    Attributes:
      labels: id -> response, of the pool's rows that have one.
      ids: of all rows that a pool of the experiment may be drawn from.
      folder: the experiment's output folder.
      task: what a response must be.
      check: raises `DataError` for a labelled example that cannot be trained on, such as one that is too long.
      skip: what is written where an example cannot be labelled.
      skipped: ids of the pool's rows that say so.
      columns: id -> other columns of its row that a person is to see.
      simulated, llm, label_studio: settings of the annotators of those names.
    """

    labels: Mapping[str, str]
    ids: Collection[str]
    folder: Path
    task: Task
    check: Callable[[Example], object] = lambda example: None
    skip: str = SKIP
    skipped: Collection[str] = ()
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    simulated: SimulatedConfig = field(default_factory=SimulatedConfig)
    llm: LlmConfig = field(default_factory=LlmConfig)
    label_studio: LabelStudioConfig = field(default_factory=LabelStudioConfig)


AnnotatorFactory = Callable[[AnnotatorContext], Annotator]


def register_annotator(name: str) -> Callable[[Any], Any]:
    """Decorator: registers a function of an `AnnotatorContext` that makes an annotator.

    Raises:
      ConfigError: the package has an annotator of that name.

    Example:
      >>> @register_annotator("parrot")
      ... class Parrot:
      ...     def __init__(self, context):
      ...         pass
      ...     def annotate(self, requests):
      ...         return [Answer(request.id, request.text, annotator="parrot") for request in requests]
      ...     def instructions(self, open_requests):
      ...         return "a parrot answers at once"
    """

    def register(factory: Any) -> Any:
        ANNOTATORS.register(name, factory)
        return factory

    return register


def collect(annotator: Annotator, requests: Sequence[Request], spare: Iterable[Request] = ()) -> list[Answer]:
    """An answer to every request, in their order, and to those that stand in for skipped ones behind them.

    Args:
      annotator: who is asked.
      requests: for labels.
      spare: what to ask for next, one for each request that is skipped; as many are taken as it needs for as many
        labels as there are requests, or all.

    Raises:
      LabelsNeeded: some are open; the annotator says how to go on.
      DataError: as `Annotator.annotate`; or an answer is none, or there are two for one request.
    """
    asked, fresh, others = list(requests), list(requests), iter(spare)
    answers: dict[str, Answer] = {}
    while fresh:
        _ask(annotator, fresh, answers)
        skipped = sum(request.id in answers and answers[request.id].skipped for request in asked)
        fresh = list(islice(others, skipped - (len(asked) - len(requests))))
        asked += fresh
    still_open = [request for request in asked if request.id not in answers]
    if still_open:
        raise LabelsNeeded(annotator.instructions(still_open))
    return [answers[request.id] for request in asked]


def _ask(annotator: Annotator, requests: Sequence[Request], answers: dict[str, Answer]) -> None:
    """Adds the answers that there are; whoever writes that an example is skipped has skipped it."""
    for answer in annotator.annotate(requests) or ():
        if not isinstance(answer, Answer) or not isinstance(answer.response, str | None):
            raise DataError(f"the annotator gave {answer!r}; it must give an Answer whose response is a text, or None")
        if answer.response is not None and is_skip(answer.response):
            answer = replace(answer, response=None)
        if answers.setdefault(answer.id, answer) != answer:
            raise DataError(f"the annotator gave two answers for {answer.id!r}; it must give one")
