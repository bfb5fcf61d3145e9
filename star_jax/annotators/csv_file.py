"""A person as annotator, through a table beside the run folders: what to label goes out, what was written is read."""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request
from star_jax.data.examples import Example, Prompt
from star_jax.data.readers import Record, read_rows
from star_jax.data.tasks.fields import field_names
from star_jax.data.tasks.task import Task
from star_jax.errors import DataError
from star_jax.runs.files import write_text_atomic

LABELS_FILE = "labels.csv"
"""Name of the table: columns id, prompt and response, the last empty where a label is asked for."""

COLUMNS = ("id", "prompt", "response")


SKIP = "[skip]"
"""What a person writes into the response cell of an example that cannot be labelled, and a program tells of it: it is
never asked for again, and never trained on."""

WHO, WHEN = "annotator", "labelled_at"
"""Columns that a person may add: who labelled a row, and when."""


class _Cell(NamedTuple):
    """What the table has of a prompt.

    Attributes:
      prompt: its text.
      text: what a person wrote.
      response: the response that this stands for; None where nothing is written, or `SKIP`.
      line: of the table.
      more: cells of columns that a person has added.
    """

    prompt: str
    text: str = ""
    response: str | None = None
    line: int = 0
    more: Mapping[str, str] = MappingProxyType({})


class FileAnnotator:
    """Labels from the pool where it has them, and from a person for the rest.

    The table grows by what each round asks for and keeps all that was ever written into it. All runs of an experiment
    share it: what one has asked for, none asks again.
    """

    def __init__(
        self,
        known: Mapping[str, str],
        ids: Collection[str],
        path: Path,
        task: Task,
        check: Callable[[Example], object] = lambda example: None,
    ) -> None:
        """An annotator.

        Args:
          known: id -> response, for what the pool has a response to.
          ids: of all rows that a pool of the experiment may be drawn from.
          path: the table; made when a label is first asked for.
          task: what a response must be.
          check: raises `DataError` for a labelled example that cannot be trained on, such as one that is too long.
        """
        self._known = known
        self._ids = frozenset(ids)
        self._path = path
        self._task = task
        self._check = check

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers that the pool or the table has; requests without one are in the table afterwards, to be filled in.

        Raises:
          DataError: the table cannot be read, names what is not in the pool or has another prompt there, or holds a
            response that is none of this task or does not pass the check; the line is named.
        """
        prompts = [request.prompt for request in requests]
        if all(prompt.id in self._known for prompt in prompts):
            return [Answer(prompt.id, self._known[prompt.id]) for prompt in prompts]
        with self._locked():
            return self._annotate(prompts)

    def instructions(self, open_requests: Sequence[Request]) -> str:
        """Where to write the labels, and how many are missing in all."""
        empty = sum(not cell.text for cell in self._read().values())
        closed = self._task.candidates or ()
        choice = f" ({', '.join(text.strip() for text in closed)})" if closed else ""
        return (
            f"{empty} examples need a label{choice}: write it into the empty cells of column 'response' in "
            f"{self._path}, save, and run the same command again"
        )

    def _annotate(self, prompts: Sequence[Prompt]) -> list[Answer]:
        table = self._read()
        for prompt in prompts:
            if prompt.id in table:
                self._verify(prompt, table[prompt.id])
        answers = {name: _answer(name, cell) for name, cell in table.items() if cell.text}
        answers |= {name: Answer(name, response) for name, response in self._known.items()}
        missing = {prompt.id: _Cell(prompt.text) for prompt in prompts if prompt.id not in answers}
        if missing:
            self._write(table | {name: cell for name, cell in missing.items() if name not in table})
        return [answers[prompt.id] for prompt in prompts if prompt.id in answers]

    def _verify(self, prompt: Prompt, cell: _Cell) -> None:
        """A label belongs to a text: where the pool's file has changed, an id may be that of another one."""
        problem = None
        if cell.prompt.split() != prompt.text.split():
            problem = f"the prompt of id {prompt.id!r} is not the pool's; restore the pool's file, or take the row out"
        elif cell.response is not None:
            try:
                self._check(Example(prompt, cell.response))
            except DataError as error:
                problem = str(error)
        if problem:
            raise DataError(f"{self._path}, line {cell.line}: {problem}")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time reads the table and adds to it; runs of one experiment may be started side by side."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (self._path.parent / f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, _Cell]:
        """Id -> what the table has of it, in the table's order."""
        if not self._path.exists():
            return {}
        table: dict[str, _Cell] = {}
        lines: dict[str, int] = {}
        for line, row in read_rows(str(self._path.absolute()), "train", may_be_empty=True):
            try:
                if isinstance(row, DataError):
                    raise row
                if not any(str(cell).strip() for cell in row.values()):
                    continue  # spreadsheets leave such rows behind
                name, cell = self._cell(row, line)
                if name in lines:
                    raise DataError(f"id '{name}' is already that of line {lines[name]}; keep one of the two rows")
            except DataError as error:
                raise DataError(f"{self._path}, line {line}: {error}") from error
            table[name], lines[name] = cell, line
        return table

    def _cell(self, row: Record, line: int) -> tuple[str, _Cell]:
        absent = [name for name in COLUMNS if name not in row]
        if absent:
            raise DataError(
                f"the column {absent[0]!r} is missing (the table has {field_names(row)}); restore it, and save the "
                "table with commas between its cells"
            )
        name, text = row["id"], row["response"].strip()
        if name not in self._ids:
            raise DataError(
                f"no row of the pool has the id {name!r}; restore it (spreadsheets drop zeros at the beginning of a "
                "number), or take the row out"
            )
        response = self._task.written(text) if text and text != SKIP else None
        more = {column: cell for column, cell in row.items() if column not in COLUMNS}
        return name, _Cell(row["prompt"], text, response, line, more)

    def _write(self, table: Mapping[str, _Cell]) -> None:
        """Every cell in quotes, so that a lone carriage return in a prompt is no end of a row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        added = list(dict.fromkeys(column for cell in table.values() for column in cell.more))
        writer.writerow([*COLUMNS, *added])
        for name, cell in table.items():
            writer.writerow([name, cell.prompt, cell.text, *(cell.more.get(column, "") for column in added)])
        # Spreadsheets take a file without a byte order mark for one in the encoding of their country.
        write_text_atomic(self._path, "\ufeff" + text.getvalue())


def _answer(name: str, cell: _Cell) -> Answer:
    return Answer(name, cell.response, cell.more.get(WHO) or None, cell.more.get(WHEN) or None)


def csv_file(context: AnnotatorContext) -> FileAnnotator:
    """A person who writes into `LABELS_FILE` in the experiment's folder; one table serves all of its runs."""
    table = context.folder / LABELS_FILE
    return FileAnnotator(context.labels, context.ids, table, context.task, context.check)
