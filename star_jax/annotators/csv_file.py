"""A person as annotator, through a table beside the run folders: what to label goes out, what was written is read."""

from __future__ import annotations

import csv
import fcntl
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from star_jax.data.examples import Example, Prompt
from star_jax.data.readers import Record, read_rows
from star_jax.data.tasks.fields import field_names
from star_jax.data.tasks.task import Task
from star_jax.errors import DataError, LabelsNeeded
from star_jax.runs.files import write_text_atomic

LABELS_FILE = "labels.csv"
"""Name of the table: columns id, prompt and response, the last empty where a label is asked for."""

COLUMNS = ("id", "prompt", "response")


class _Cell(NamedTuple):
    """What the table has of a prompt: its text, what a person wrote, the response that this stands for, its line."""

    prompt: str
    text: str = ""
    response: str | None = None
    line: int = 0


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

    def label(self, prompts: Sequence[Prompt]) -> list[Example]:
        """One labelled example a prompt, in the order asked.

        Raises:
          LabelsNeeded: a person has to write some; they are in the table now.
          DataError: the table cannot be read, names what is not in the pool or has another prompt there, or holds a
            response that is none of this task or does not pass the check; the line is named.
        """
        if all(prompt.id in self._known for prompt in prompts):
            return [Example(prompt, self._known[prompt.id]) for prompt in prompts]
        with self._locked():
            return self._label(prompts)

    def _label(self, prompts: Sequence[Prompt]) -> list[Example]:
        table = self._read()
        for prompt in prompts:
            if prompt.id in table:
                self._verify(prompt, table[prompt.id])
        written = {name: cell.response for name, cell in table.items() if cell.response is not None}
        labels = written | dict(self._known)
        missing = {prompt.id: _Cell(prompt.text) for prompt in prompts if prompt.id not in labels}
        if missing:
            table = table | {name: cell for name, cell in missing.items() if name not in table}
            self._write(table)
            empty = sum(cell.response is None for cell in table.values())
            closed = self._task.candidates or ()
            choice = f" ({', '.join(text.strip() for text in closed)})" if closed else ""
            raise LabelsNeeded(
                f"{empty} examples need a label{choice}: write it into the empty cells of column 'response' in "
                f"{self._path}, save, and run the same command again"
            )
        return [Example(prompt, labels[prompt.id]) for prompt in prompts]

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
        return name, _Cell(row["prompt"], text, self._task.written(text) if text else None, line)

    def _write(self, table: Mapping[str, _Cell]) -> None:
        """Every cell in quotes, so that a lone carriage return in a prompt is no end of a row."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        writer.writerows((name, cell.prompt, cell.text) for name, cell in table.items())
        # Spreadsheets take a file without a byte order mark for one in the encoding of their country.
        write_text_atomic(self._path, "\ufeff" + text.getvalue())
