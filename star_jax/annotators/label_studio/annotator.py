"""People as annotators, in a project of Label Studio: what to label goes there as tasks, annotations come back."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request
from star_jax.annotators.label_studio.server import JsonObject, LabelStudio
from star_jax.annotators.label_studio.tasks import (
    QUESTION,
    as_task,
    counting,
    labelling_interface,
    who,
    written_text,
)
from star_jax.config import LabelStudioConfig
from star_jax.data.examples import Example
from star_jax.data.faults import said_at_once
from star_jax.errors import ConfigError, DataError
from star_jax.runs.files import read_json, write_json_atomic

PROJECT_FILE = "label_studio.json"
"""Name of the file beside the run folders that says which project is the experiment's."""


class Sheet(NamedTuple):
    """What a project says at one moment.

    Attributes:
      answers: id -> answer, of what is labelled or skipped, and of what the pool has.
      open: ids of tasks without an annotation.
      prompts: id -> the prompt that people see.
    """

    answers: Mapping[str, Answer]
    open: frozenset[str]
    prompts: Mapping[str, str]


class LabelStudioAnnotator:
    """Labels from the pool where it has them, and from a project for the rest.

    All runs of an experiment share a project: what one has asked for, none asks again. An annotation that is cancelled,
    which is what Skip does, skips the example.
    """

    def __init__(self, context: AnnotatorContext, settings: LabelStudioConfig, server: LabelStudio) -> None:
        """An annotator; no project is made before a label is asked for.

        Args:
          context: what a run knows.
          settings: of the section `label_studio`.
          server: that has the project.
        """
        self._context, self._settings, self._server = context, settings, server
        candidates = context.task.candidates
        self._closed = None if candidates is None else [text.strip() for text in candidates]
        self._known = {name: Answer(name, response) for name, response in context.labels.items()}
        self._known |= {name: Answer(name, None) for name in context.skipped}
        self._file = context.folder / PROJECT_FILE

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers that the pool or the project has; requests without one are tasks of the project afterwards.

        Raises:
          ConfigError: the server cannot be asked.
          DataError: an annotation cannot be used, or is of another prompt; each task is named.
        """
        if all(request.id in self._known for request in requests) and self._project() is None:
            return [self._known[request.id] for request in requests]
        with self._locked():
            project = self._project() or self._made_project()
            sheet = self._sheet(project, requests)
            fresh = [one for one in requests if one.id not in sheet.answers and one.id not in sheet.open]
            if fresh:
                columns = self._context.columns
                self._server.add_tasks(project, [as_task(one, self._closed, columns.get(one.id, {})) for one in fresh])
        return [sheet.answers[request.id] for request in requests if request.id in sheet.answers]

    def review(self) -> None:
        """Reads the whole project.

        Raises:
          ConfigError, DataError: as `annotate`.
        """
        if (project := self._project()) is not None:
            self._sheet(project, [])

    def current(self, requests: Sequence[Request]) -> list[Answer]:
        """What pool and project say now; nothing is asked for. Errors as those of `annotate`."""
        project = self._project()
        answers = self._known if project is None else self._sheet(project, requests).answers
        return [answers[request.id] for request in requests if request.id in answers]

    def instructions(self, open_requests: Sequence[Request]) -> str:
        """Where to label."""
        project = self._project()
        place = self._server.url if project is None else self._server.address(project)
        return (
            f"{len(open_requests)} examples need a label: annotate the tasks in {place}, and run the same command "
            "again; Skip stands for an example that cannot be labelled"
        )

    def _project(self) -> int | None:
        """The experiment's project; None before there is one."""
        if self._settings.project is not None:
            return self._settings.project
        if not self._file.is_file():
            return None
        found = read_json(self._file)
        if found.get("url") != self._server.url or not isinstance(found.get("project"), int):
            raise ConfigError(
                f"{self._file} names a project at {found.get('url')}, and label_studio.url is {self._server.url}; "
                "correct the one, or remove the other"
            )
        return int(found["project"])

    def _made_project(self) -> int:
        title = f"star_jax {self._context.folder.resolve().name}"[:50]
        project = self._server.create_project(title, labelling_interface(self._closed))
        write_json_atomic(self._file, {"url": self._server.url, "project": project})
        return project

    def _sheet(self, project: int, requests: Sequence[Request]) -> Sheet:
        """What the project says, after a look at what it has of the requests' prompts."""
        answers, prompts, open_ids, faults = dict(self._known), dict[str, str](), set[str](), list[tuple[str, str]]()
        prompt_of = {request.id: request.prompt for request in requests}
        for task in self._server.tasks(project):
            data = task.get("data") or {}
            name, place = str(data.get("id", "")), f"task {task.get('id')}"
            if name not in self._context.ids:
                continue  # of somebody else: a project may have other tasks
            prompts[name] = str(data.get(QUESTION, ""))
            try:
                prompt = prompt_of.get(name)
                if prompt is not None and prompt.readable != prompts[name]:
                    raise DataError("its prompt is not that of the pool; restore the pool's file, or delete the task")
                answer = self._answer(name, task)
                if answer is None:
                    open_ids.add(name)
                    continue
                if prompt is not None and answer.response is not None:
                    self._context.check(Example(prompt, answer.response))
                answers.setdefault(name, answer)
            except DataError as error:
                faults.append((place, f"{error} (id {name!r})"))
        if faults:
            raise DataError(f"{self._server.address(project)}, {said_at_once(faults)}")
        return Sheet(answers, frozenset(open_ids), prompts)

    def _answer(self, name: str, task: JsonObject) -> Answer | None:
        """The answer of a task; None where nobody has annotated it."""
        annotation = counting(task.get("annotations") or ())
        if annotation is None:
            return None
        response = None
        if not annotation.get("was_cancelled"):
            response = self._context.task.written(written_text(annotation))
        when = annotation.get("updated_at") or annotation.get("created_at")
        return Answer(name, response, who(annotation), None if when is None else str(when))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time looks what is asked for and adds to it."""
        self._context.folder.mkdir(parents=True, exist_ok=True)
        with (self._context.folder / f".{PROJECT_FILE}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def label_studio(context: AnnotatorContext) -> LabelStudioAnnotator:
    """People who label in `label_studio.url`; errors as those of `LabelStudio`."""
    return LabelStudioAnnotator(context, context.label_studio, LabelStudio(context.label_studio))
