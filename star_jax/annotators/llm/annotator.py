"""A language model as annotator, audited by a person.

What the pool or a person has labelled is taken from there. The rest the model is asked for; of its labels, a share
goes to a person as well, through the table that people label in, whose answers then count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request
from star_jax.annotators.csv_file import FileAnnotator, csv_file
from star_jax.annotators.llm.calls import CALLS_FILE, Call, CallLog, Endpoint, Stopped
from star_jax.annotators.llm.messages import (
    Shot,
    asked_again,
    choose_shots,
    conversation,
    hash_of,
    is_audited,
    read_answer,
    response_format,
    system_message,
)
from star_jax.config import LlmConfig
from star_jax.data.examples import Example
from star_jax.data.tasks.task import Task
from star_jax.data.tasks.templates import RowTemplate
from star_jax.documents import UnreadableError, read_text
from star_jax.errors import ConfigError, DataError

TOKEN_CHARACTERS, FEW_TOKENS = 4.0, 16
"""Characters of a token, and tokens of an answer, where a price is estimated and no call has told yet."""

Ask = Callable[..., Call]


@dataclass(frozen=True)
class Reading:
    """What the calls for an example have come to.

    Attributes:
      answer: None while another call is to be made.
      label: as the model wrote it; None where it gave none.
      problem: of the last call; empty where there was none.
    """

    answer: Answer | None
    label: str | None = None
    problem: str = ""


class LlmAnnotator:
    """Labels from an endpoint."""

    def __init__(
        self,
        people: FileAnnotator,
        task: Task,
        settings: LlmConfig,
        log: CallLog,
        ask: Ask,
        check: Callable[[Example], object] = lambda example: None,
    ) -> None:
        """An annotator; nothing is asked yet.

        Args:
          people: what the pool and people say, and who audits.
          task: what a response must be.
          settings: of the section `llm`.
          log: of all calls.
          ask: as `Endpoint.ask`.
          check: raises `DataError` for a labelled example that cannot be trained on.

        Raises:
          ConfigError: the template or the file of guidelines cannot be used.
        """
        self._people, self._task, self._settings = people, task, settings
        self._log, self._ask, self._check = log, ask, check
        self._answers = None if task.candidates is None else [text.strip() for text in task.candidates]
        self._template = RowTemplate("llm.prompt", settings.prompt)
        self._system = system_message(_guidelines(settings.guidelines), self._answers)
        self._used: dict[str, Request] = {}
        self._stopped = ""

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """Labels of the pool, of people and of the model; what is to be audited stays open until a person has.

        Raises:
          ConfigError: the endpoint refuses the key, the model or the call.
          DataError: as that of `FileAnnotator`.
        """
        said = {one.id: one for one in self._people.written(requests)}
        self._used |= {request.id: request for request in requests if request.id in said}
        open_ones = [request for request in requests if request.id not in said]
        self._label(open_ones, self._shots())
        self._used |= {request.id: request for request in requests}
        labels = self._labels(requests)
        # The person does not see the label, so that the two are two opinions.
        audits = [one for one in open_ones if one.id in labels and self._to_audit(labels[one.id])]
        said |= {one.id: one for one in self._people.annotate(audits)} if audits else {}
        return self._together(requests, said, labels)

    def review(self) -> None:
        """Reads the table of people.

        Raises:
          DataError: it cannot be used.
        """
        self._people.review()

    def current(self, requests: Sequence[Request]) -> list[Answer]:
        """What is written now; nobody is asked.

        Raises:
          DataError: as that of `FileAnnotator.current`.
        """
        self._used |= {request.id: request for request in requests}
        said = {one.id: one for one in self._people.current(requests)}
        return self._together(requests, said, self._labels(requests))

    def instructions(self, open_requests: Sequence[Request]) -> str:
        """Why the model was not asked, or where a person audits."""
        if self._stopped:
            return f"{len(open_requests)} examples wait for a label: {self._stopped}"
        return f"{self._people.instructions(open_requests)}; the model has labelled them too, and this audits it"

    def price(self, requests: Sequence[Request]) -> list[float]:
        """What a call for each is expected to cost: the mean of those so far, more or less by what it has to read."""
        calls, settings = self._log.calls(), self._settings
        own = [len(self._text(one)) / TOKEN_CHARACTERS for one in requests]
        read, written = len(self._system) / TOKEN_CHARACTERS + sum(own) / max(len(own), 1), float(FEW_TOKENS)
        if calls:
            read, written = (
                sum(getattr(call, name) for call in calls) / len(calls) for name in ("input_tokens", "output_tokens")
            )
        typical = sum(own) / max(len(own), 1)
        return [
            (max(read + length - typical, length) * settings.input_price + written * settings.output_price) / 1e6
            for length in own
        ]

    def _together(
        self, requests: Sequence[Request], said: Mapping[str, Answer], labels: Mapping[str, Answer]
    ) -> list[Answer]:
        """A person's word counts; where it audits a label, what that was stands beside it."""
        found = []
        for request in requests:
            person, label = said.get(request.id), labels.get(request.id)
            if person is not None:
                audited = label if label is not None and self._to_audit(label) else None
                found.append(replace(person, cost=audited.cost, other=audited.response) if audited else person)
            elif label is not None and not self._to_audit(label):
                found.append(label)
        return found

    def _to_audit(self, label: Answer) -> bool:
        return label.response is not None and is_audited(label.id, self._settings.audit)

    def _label(self, requests: Sequence[Request], shots: Sequence[Shot]) -> None:
        """Makes the calls that are missing for some examples, several at a time, until all are done or none can be."""
        self._stopped = ""
        calls = self._calls()
        todo = [one for one in requests if self._reading(one, calls.get(self._question(one), [])).answer is None]

        def one(request: Request) -> None:
            own = list(calls.get(self._question(request), []))
            while not self._stopped and (reading := self._reading(request, own)).answer is None:
                messages = conversation(
                    self._system, choose_shots(shots, self._settings.shots, request.id), self._text(request)
                )
                if own:
                    messages = asked_again(messages, reading.problem)
                format = response_format(self._settings.structured, self._answers)
                try:
                    own.append(self._ask(request.id, self._question(request), messages, format))
                except Stopped as stopped:
                    self._stopped = str(stopped)

        threads = ThreadPoolExecutor(self._settings.parallel)
        try:
            for done in [threads.submit(one, request) for request in todo]:
                done.result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _labels(self, requests: Sequence[Request]) -> dict[str, Answer]:
        """What the model has said so far, by id."""
        calls = self._calls()
        read = {one.id: self._reading(one, calls.get(self._question(one), [])).answer for one in requests}
        return {name: answer for name, answer in read.items() if answer is not None}

    def _calls(self) -> dict[str, list[Call]]:
        found: dict[str, list[Call]] = {}
        for call in self._log.calls():
            found.setdefault(call.question, []).append(call)
        return found

    def _reading(self, request: Request, calls: Sequence[Call]) -> Reading:
        """The first answer that can be used; where none of as many as are made can, the example is skipped."""
        problem, cost = "", 0.0
        for number, call in enumerate(calls):
            cost += call.cost
            try:
                label = read_answer(call.said or "")
                response = None if label is None else self._people.reading(label)
                if response is not None:
                    self._check(Example(request.prompt, response))
            except DataError as error:
                problem, response, label = str(error), None, None
                if number < self._settings.retries:
                    continue
            return Reading(Answer(request.id, response, self._settings.model, call.called_at, cost), label, problem)
        return Reading(None, None, problem)

    def _shots(self) -> list[Shot]:
        """Labels so far that can be shown as examples: what was asked for before, and what people have labelled."""
        if not self._settings.shots:
            return []
        used = list(self._used.values())
        known = {one.id: one for one in self._people.written(used)} if used else {}
        calls, found = self._calls(), []
        for request in used:
            person = known.get(request.id)
            reading = self._reading(request, calls.get(self._question(request), []))
            if person is not None:
                found += self._shown(request, person)
            elif reading.answer is not None and not reading.problem:
                found.append(Shot(request.id, self._text(request), reading.label, trusted=False))
        return found

    def _shown(self, request: Request, person: Answer) -> list[Shot]:
        """A person's label as the model is to write it; none where the response does not tell what that is."""
        text = None if person.response is None else person.response.strip()
        try:
            same = text is None or self._people.reading(text) == person.response
        except DataError:
            same = False
        return [Shot(request.id, self._text(request), text, trusted=True)] if same else []

    def _text(self, request: Request) -> str:
        return self._template.render({"prompt": request.readable})

    def _question(self, request: Request) -> str:
        return hash_of(self._settings.model, self._system, request.id, self._text(request))


def _guidelines(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return read_text(Path(path).expanduser())
    except UnreadableError as error:
        raise ConfigError(f"llm.guidelines: {error.at(path)}") from error


def llm(context: AnnotatorContext) -> LlmAnnotator:
    """The model of a run, whose calls lie in `CALLS_FILE` in the experiment's folder; errors as those of `Endpoint`."""
    log = CallLog(context.folder / CALLS_FILE)
    endpoint = Endpoint(context.llm, log)
    return LlmAnnotator(csv_file(context), context.task, context.llm, log, endpoint.ask, context.check)
