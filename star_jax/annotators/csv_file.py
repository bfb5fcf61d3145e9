"""A person as annotator, through a table beside the run folders: what to label goes out, what was written is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request
from star_jax.annotators.label_table import COLUMNS, Asked, Cell, LabelTable, as_text, asked_for, reasons, shown_hash
from star_jax.config import SKIP
from star_jax.data.examples import Example, Prompt
from star_jax.data.skips import is_skip, refuse_near_skip
from star_jax.data.tasks.task import Task
from star_jax.errors import DataError

__all__ = ["LABELS_FILE", "SKIP", "FileAnnotator", "TableOptions", "csv_file"]

LABELS_FILE = "labels.csv"
"""Name of the table: columns id, prompt and response, the last empty where a label is asked for."""

WHO, WHEN = "annotator", "labelled_at"
"""Columns that a person may add: who labelled a row, and when."""

BY = "strategy"
"""Column that says which strategies ask for a row, where there are several."""

_NOT_COMPUTED = re.compile(r"#(NAME\?|REF!|VALUE!|DIV/0!|NUM!|NULL!)|Err:\d{3}")
"""What spreadsheets put in the place of what they cannot compute."""


@dataclass(frozen=True)
class TableOptions:
    """What a person is shown, and may write instead of a label.

    Attributes:
      skip: what stands for an example that cannot be labelled.
      skipped: ids of what the pool says cannot be labelled.
      columns: id -> other columns of the pool to show.
    """

    skip: str = SKIP
    skipped: Collection[str] = ()
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


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
        options: TableOptions | None = None,
    ) -> None:
        """An annotator.

        Args:
          known: id -> response, for what the pool has a response to.
          ids: of all rows that a pool of the experiment may be drawn from.
          path: the table; made when a label is first asked for.
          task: what a response must be.
          check: raises `DataError` for a labelled example that cannot be trained on, such as one that is too long.
          options: what a person is shown and may write.
        """
        self._ids = frozenset(ids)
        self._table = LabelTable(path)
        self._task = task
        self._check = check
        self._options = options or TableOptions()
        self._known: dict[str, Answer] = {name: Answer(name, response) for name, response in known.items()}
        self._known |= {name: Answer(name, None) for name in self._options.skipped}

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers that the pool or the table has; requests without one are in the table afterwards, to be filled in.

        Raises:
          DataError: the table cannot be read, names what is not in the pool or has another prompt or response there,
            or holds a response that is none of this task or does not pass the check; every line is named.
        """
        if all(request.id in self._known for request in requests) and not self._table.exists():
            return [self._known[request.id] for request in requests]
        with self._table.locked():
            cells, answers = self._answers([request.prompt for request in requests])
            fresh = [request for request in requests if request.id not in answers]
            if fresh:
                self._add(cells, fresh)
        return [answers[request.id] for request in requests if request.id in answers]

    def written(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers that the pool or the table has so far; nothing is asked for. Errors as those of `annotate`."""
        _, answers = self._answers([request.prompt for request in requests])
        return [answers[request.id] for request in requests if request.id in answers]

    def reading(self, text: str) -> str | None:
        """The response that a text stands for where it is written as an answer; None where it is a skip.

        Raises:
          DataError: it is none of this task.
        """
        skipped = is_skip(text, self._options.skip)
        if not skipped and self._task.candidates is None:
            refuse_near_skip(text, self._options.skip)
            if _NOT_COMPUTED.fullmatch(text):
                raise DataError(
                    f"the response is {text!r}, which a spreadsheet writes for what it cannot compute; write the "
                    "answer again, as text"
                )
        return None if skipped else self._task.written(text)

    def instructions(self, open_requests: Sequence[Request]) -> str:
        """Where to write the labels, how many are missing in all, and which strategies ask."""
        empty = [name for name, cell in self._table.cells(self._ids).items() if not cell.text]
        asked = self._table.asked()
        names = dict.fromkeys(name for one in empty if one in asked for name in asked[one].strategies)
        closed = self._task.candidates or ()
        choice = f" ({', '.join(text.strip() for text in closed)})" if closed else ""
        whom = f", for {' and '.join(names)}" if names else ""
        return (
            f"{len(empty)} examples need a label{choice}{whom}: write it into the empty cells of column 'response' in "
            f"{self._table.path}, save, and run the same command again; {self._options.skip} stands for an example "
            "that cannot be labelled"
        )

    def review(self) -> None:
        """Reads the whole table.

        Raises:
          DataError: as `annotate`.
        """
        self._answers([])

    def current(self, requests: Sequence[Request]) -> list[Answer]:
        """What pool and table say now; nothing is asked for.

        Raises:
          DataError: as `annotate`; or a label that was used has been emptied, which says neither what else it should
            be nor that there is none.
        """
        cells, answers = self._answers([request.prompt for request in requests])
        emptied = [name for request in requests if (name := request.id) in cells and name not in answers]
        self._table.refuse(
            [
                (
                    cells[name].place,
                    f"the label of id {name!r} was used and is empty now; write it again, or {self._options.skip} to "
                    "take it back",
                )
                for name in emptied
            ]
        )
        return [answers[request.id] for request in requests if request.id in answers]

    def _answers(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Cell], dict[str, Answer]]:
        """The table, and the answers of pool and table, after a look at what the table has of the prompts."""
        cells = self._table.cells(self._ids)
        answers: dict[str, Answer] = {}
        faults: list[tuple[str, str]] = []
        for name, cell in cells.items():
            try:
                answers |= self._answer(name, cell)
            except DataError as error:
                faults.append((cell.place, _of(name, error)))
        asked = self._table.asked() if prompts and cells else {}
        owners: dict[str, list[str]] = {}
        for name, one in asked.items():
            owners.setdefault(one.shown, []).append(name)
        for prompt in prompts:
            if prompt.id in cells:
                try:
                    _verify(prompt, cells[prompt.id], asked.get(prompt.id), owners)
                    answer = answers.get(prompt.id)
                    if answer is not None and answer.response is not None:
                        self._check(Example(prompt, answer.response))
                except DataError as error:
                    faults.append((cells[prompt.id].place, _of(prompt.id, error)))
        self._table.refuse(faults)
        return cells, answers | self._known

    def _answer(self, name: str, cell: Cell) -> dict[str, Answer]:
        """The answer in a cell, by id; none where nothing is written."""
        if not cell.text:
            return {}
        response = self.reading(cell.text)
        known = self._known.get(name)
        if known is not None and not self._agree(known.response, response):
            other = self._options.skip if known.response is None else known.response.strip()
            raise DataError(f"the response is {cell.text!r}, and {other!r} in the pool's own file; correct one of them")
        return {name: Answer(name, response, cell.more.get(WHO) or None, cell.more.get(WHEN) or None)}

    def _agree(self, known: str | None, response: str | None) -> bool:
        """Whether pool and table say the same, if in other words."""
        if known is None or response is None:
            return known is response
        return known.strip() == response.strip() or self._task.is_correct(response, known)

    def _add(self, cells: Mapping[str, Cell], fresh: Iterable[Request]) -> None:
        """Writes what is asked for behind what the table has."""
        asked = self._table.asked()
        rows = dict(cells)
        for request in fresh:
            before = asked.get(request.id)
            earlier = before.strategies if before is not None else ()
            names = dict.fromkeys([*earlier, *([request.strategy] if request.strategy else [])])
            # Where several ask, the reasons are those of the first.
            others = before is not None and before.why and request.strategy not in earlier[:1]
            why = before.why if before is not None and others else reasons(request, self._task.candidates)
            asked[request.id] = asked_for(request.prompt, list(names), why)
            rows.setdefault(request.id, Cell(as_text(request.readable)))
        several = len({name for one in asked.values() for name in one.strategies}) > 1
        for name, cell in rows.items():
            shown = {key: as_text(text) for key, text in self._options.columns.get(name, {}).items()}
            shown = {key: text for key, text in shown.items() if key not in COLUMNS}
            if several and name in asked:
                shown[BY] = ", ".join(asked[name].strategies)
            rows[name] = cell._replace(more={**cell.more, **{k: v for k, v in shown.items() if k not in cell.more}})
        self._table.write(rows, asked)


def _verify(prompt: Prompt, cell: Cell, asked: Asked | None, owners: Mapping[str, Sequence[str]]) -> None:
    """A label belongs to a text: where the pool's file has changed, an id may be that of another one.

    Where it is known what was asked for, the cell itself does not count, for spreadsheets make dates and numbers of
    it; but not the prompt of another row, which shows that columns were sorted apart.

    Args:
      prompt: of the pool.
      cell: of the table.
      asked: what was asked for under the prompt's id, if that is known.
      owners: hash of what a person was shown -> the ids.
    """
    expected = asked_for(prompt)
    found = shown_hash(cell.prompt)
    same = found in (expected.shown, shown_hash(prompt.text))
    belongs = same if asked is None else asked.prompt == expected.prompt
    if not belongs:
        raise DataError(
            f"the prompt of id {prompt.id!r} is not the pool's; restore the pool's file, or take the row out"
        )
    if not same and found in owners:
        raise DataError(
            f"id {prompt.id!r} stands beside the prompt of id {owners[found][0]!r}; undo what moved the cells of one "
            "column alone"
        )


def _of(name: str, error: DataError) -> str:
    """What is wrong with the row of an id, which is named where it is not yet."""
    return str(error) if repr(name) in str(error) else f"{error} (id {name!r})"


def csv_file(context: AnnotatorContext) -> FileAnnotator:
    """A person who writes into `LABELS_FILE` in the experiment's folder; one table serves all of its runs."""
    options = TableOptions(context.skip, context.skipped, context.columns)
    table = context.folder / LABELS_FILE
    return FileAnnotator(context.labels, context.ids, table, context.task, context.check, options)
