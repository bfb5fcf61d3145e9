"""A person as annotator, through a table in the run folder: what to label goes out, what was written comes back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from star_jax.active.oracles import LabelsNeeded
from star_jax.data.examples import DataError, Example, Prompt
from star_jax.data.reading import read_rows
from star_jax.data.tasks.task import Task
from star_jax.runtime.files import write_text_atomic

LABELS_FILE = "labels.csv"
"""Name of the table: columns id, prompt and response, the last empty where a label is asked for."""


class FileAnnotator:
    """Labels from the pool where it has them, and from a person for the rest.

    The table grows by what each round asks for and keeps all that was ever written into it.
    """

    def __init__(self, known: Mapping[str, str], path: Path, task: Task) -> None:
        """An annotator.

        Args:
          known: id -> response, for what the pool has a response to.
          path: the table; made when a label is first asked for.
          task: what a response must be.
        """
        self._known = known
        self._path = path
        self._task = task

    def label(self, prompts: Sequence[Prompt]) -> list[Example]:
        """One labelled example a prompt, in the order asked.

        Raises:
          LabelsNeeded: a person has to write some; they are in the table now.
          DataError: the table cannot be read, or a response in it is none of this task; the line is named.
        """
        written = self._read()
        labels = {**{name: response for name, (_, response) in written.items() if response}, **self._known}
        missing = [prompt for prompt in prompts if prompt.id not in labels]
        if missing:
            asked = {prompt.id: (prompt.text, "") for prompt in missing if prompt.id not in written}
            self._write(written | asked)
            raise LabelsNeeded(
                f"{len(missing)} examples need a label: write it into the empty cells of column 'response' in "
                f"{self._path}, save, and run the same command again"
            )
        return [Example(prompt, labels[prompt.id]) for prompt in prompts]

    def _read(self) -> dict[str, tuple[str, str]]:
        """Id -> prompt and response; the response is empty where none was written yet."""
        if not self._path.exists():
            return {}
        written = {}
        for line, row in read_rows(str(self._path), "train"):
            if isinstance(row, DataError):
                raise DataError(f"{self._path}, line {line}: {row}") from row
            absent = [name for name in ("id", "prompt", "response") if name not in row]
            if absent:
                raise DataError(f"{self._path}, line {line}: the column {absent[0]!r} is missing; restore it")
            text = row["response"].strip()
            try:
                written[row["id"]] = (row["prompt"], self._response(text) if text else "")
            except DataError as error:
                raise DataError(f"{self._path}, line {line}: {error}") from error
        return written

    def _response(self, text: str) -> str:
        """What a person wrote as the response to train on: one of the closed answers, or the text as it is."""
        answer = self._task.parse(text)
        if self._task.candidates is not None:
            for candidate in self._task.candidates:
                if answer is not None and answer == self._task.parse(candidate):
                    return candidate
            expected = ", ".join(repr(candidate.strip()) for candidate in self._task.candidates)
            raise DataError(f"the response is {text!r}; expected one of {expected}")
        if answer is None:
            raise DataError(f"the response is {text!r}, and task {self._task.name} finds no answer in it")
        return self._task.begin + text

    def _write(self, rows: Mapping[str, tuple[str, str]]) -> None:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(("id", "prompt", "response"))
        writer.writerows((name, prompt, response) for name, (prompt, response) in rows.items())
        write_text_atomic(self._path, table.getvalue())
