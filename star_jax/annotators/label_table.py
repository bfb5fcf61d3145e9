"""The table of labels on disk: what a person wrote, cell by cell, and beside it what was asked for and by whom.

Belongs here: reading, writing, and telling a cell that a spreadsheet has made over from one of another example. Whom
the labels are for is `csv_file`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from star_jax.annotators.annotator import Request
from star_jax.data.cells import as_text, from_text
from star_jax.data.examples import Prompt
from star_jax.data.faults import said_at_once
from star_jax.data.readers import ShortRow, position, read_rows
from star_jax.data.tables import TableStyle, table_style, write_table
from star_jax.data.tasks.fields import field_names
from star_jax.errors import DataError
from star_jax.runs.files import write_bytes_atomic, write_json_atomic

COLUMNS = ("id", "prompt", "response")
"""The table's own columns."""

_WRITTEN = re.compile(r"annotator|skip_reason|decided_by|(response|skip_reason) \(.*\)")
"""Columns beside the table's own that have what people write."""


class Cell(NamedTuple):
    """What the table has of an example.

    Attributes:
      prompt: the cell, as it is in the file.
      text: what a person wrote, without the apostrophe before what looks like a formula.
      place: of the row, for messages.
      more: cells of other columns, as they are in the file, but for what people write, which is as `text`.
    """

    prompt: str
    text: str = ""
    place: str = ""
    more: Mapping[str, str] = MappingProxyType({})


class Asked(NamedTuple):
    """What was asked for under an id.

    Attributes:
      prompt: hash of the prompt's text.
      shown: hash of what a person was shown of it, whatever its blanks.
      strategies: names of those that ask.
      why: what the first of them knew of it, as `reasons` has it; empty where a former release wrote it down.
    """

    prompt: str
    shown: str
    strategies: tuple[str, ...] = ()
    why: Mapping[str, Any] = MappingProxyType({})


def asked_for(prompt: Prompt, strategies: Sequence[str] = (), why: Mapping[str, Any] = MappingProxyType({})) -> Asked:
    """What is remembered of a prompt."""
    return Asked(_hash(prompt.text), _hash(" ".join(prompt.readable.split())), tuple(strategies), why)


def reasons(request: Request, answers: Sequence[str] | None) -> dict[str, Any]:
    """What whoever labels a request may want to know; what is not known is left out.

    Args:
      request: for a label.
      answers: response texts of a closed answer set.

    Returns:
      `rank`, `score`, `uncertainty`, `guess` and `picked_by` of the request, and `answers`, as a person writes them.
    """
    known: dict[str, Any] = {"rank": request.rank, "score": request.score, "uncertainty": request.uncertainty}
    known = {name: value for name, value in known.items() if value is not None and math.isfinite(value)}
    if request.guess is not None:
        known["guess"] = request.guess
    if request.picked_by is not None:
        known["picked_by"] = request.picked_by
    if answers:
        known["answers"] = [answer.strip() for answer in answers]
    return known


def shown_hash(cell: str) -> str:
    """`Asked.shown` of a prompt's cell."""
    return _hash(" ".join(from_text(cell).split()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _as_written(column: str, cell: str, change: Callable[[str], str]) -> str:
    """The cell, changed where people write into its column."""
    return change(cell) if _WRITTEN.fullmatch(column) else cell


def _own_column(name: str) -> str:
    """The table's own name of a column, whatever its capitals and the blanks around it."""
    plain = name.strip().casefold()
    return plain if plain in COLUMNS else name


class LabelTable:
    """A table, and the record of what was asked for in it.

    Where the path is a link, the record and the lock lie beside what it leads to: those who share a table share them.
    """

    def __init__(self, path: Path) -> None:
        """A table that need not exist.

        Args:
          path: of it.
        """
        self.path = path
        self._home = path.resolve() if path.is_symlink() else path

    def exists(self) -> bool:
        """Whether there is one."""
        return self.path.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time reads the table and adds to it; runs of one experiment may be started side by side."""
        self._home.parent.mkdir(parents=True, exist_ok=True)
        with (self._home.parent / f".{self._home.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def rows(self) -> Iterator[tuple[str, str, Cell | DataError]]:
        """Place, id and cell of each row; or what is wrong with it, its id being empty where it has none."""
        if not self.exists():
            return
        source = str(self.path.absolute())
        asked = self.asked()
        for number, row in read_rows(source, "train", may_be_empty=True):
            place = position(source, number)
            if isinstance(row, ShortRow) and self._is_whole(row.cells, asked):
                row = {name: row.cells.get(name, "") for name in (*COLUMNS, *row.cells)}
            if isinstance(row, DataError):
                yield place, "", row
                continue
            if not any(str(cell).strip() for cell in row.values()):
                continue  # spreadsheets leave such rows behind
            row = {_own_column(name): cell for name, cell in row.items()} if set(COLUMNS) - row.keys() else row
            absent = [name for name in COLUMNS if name not in row]
            if absent:
                yield (
                    place,
                    "",
                    DataError(
                        f"the column {absent[0]!r} is missing (the table has {field_names(row)}); restore it, and "
                        "save the table as CSV"
                    ),
                )
                continue
            more = {name: _as_written(name, cell, from_text) for name, cell in row.items() if name not in COLUMNS}
            yield place, row["id"], Cell(row["prompt"], from_text(row["response"].strip()), place, more)

    def cells(self, ids: Collection[str] | None = None) -> dict[str, Cell]:
        """Id -> what the table has of it, in the table's order.

        Args:
          ids: those that there may be; any when None.

        Raises:
          DataError: a row cannot be read, has an id that there is not, or one that another row has; every place is
            named.
        """
        known = self.asked() if ids is None else ids
        cells: dict[str, Cell] = {}
        faults: list[tuple[str, str]] = []
        for place, written, cell in self.rows():
            name = written if written in known else from_text(written)
            if isinstance(cell, DataError):
                faults.append((place, str(cell)))
            elif ids is not None and name not in ids:
                faults.append(
                    (
                        place,
                        f"no row of the pool has the id {written!r}; restore it (spreadsheets drop zeros at the "
                        "beginning of a number), or take the row out",
                    )
                )
            elif name in cells:
                faults.append((place, f"id {name!r} is already that of {cells[name].place}; keep one of the two rows"))
            else:
                cells[name] = cell
        self.refuse(faults)
        return cells

    def refuse(self, faults: Sequence[tuple[str, str]]) -> None:
        """Raises a `DataError` that names the table and every fault, a place and what is wrong there; none, nothing."""
        if faults:
            raise DataError(f"{self.path}, {said_at_once(faults)}")

    @staticmethod
    def _is_whole(cells: Mapping[str, str], asked: Mapping[str, Asked]) -> bool:
        """Whether only empty cells at the end are missing, which some spreadsheets do not save."""
        known = asked.get(from_text(cells.get("id", "")))
        return known is not None and shown_hash(cells.get("prompt", "")) == known.shown

    def asked(self) -> dict[str, Asked]:
        """Id -> what was asked for; what cannot be read counts for nothing, for then the cells themselves do."""
        try:
            entries = json.loads(self._record().read_text("utf-8")).items()
            return {name: Asked(one[0], one[1], tuple(one[2]), *map(dict, one[3:4])) for name, one in entries}
        except (OSError, ValueError, AttributeError, TypeError, IndexError, RecursionError):
            return {}

    def write(self, cells: Mapping[str, Cell], asked: Mapping[str, Asked]) -> None:
        """Writes the table in the style that it has, and first the record."""
        write_json_atomic(self._record(), {name: list(one) for name, one in asked.items()})
        self.write_cells(cells)

    def write_cells(self, cells: Mapping[str, Cell]) -> None:
        """Writes the table alone: what was asked for is the same as before."""
        added = list(dict.fromkeys(column for cell in cells.values() for column in cell.more))
        records = [
            [
                *(as_text(name), cell.prompt, as_text(cell.text)),
                *(_as_written(column, cell.more.get(column, ""), as_text) for column in added),
            ]
            for name, cell in cells.items()
        ]
        write_bytes_atomic(self.path, write_table(self._style(), [[*COLUMNS, *added], *records]))

    def _style(self) -> TableStyle:
        """That of the table, but in an encoding that all spreadsheets are told of: without a byte order mark they take
        a file for one in the encoding of their country, and with a line that names the delimiter as well."""
        if not self.exists():
            return TableStyle()
        style = table_style(self.path)
        if style.encoding.startswith(("utf-16", "utf-32")):
            return dataclasses.replace(style, encoding=style.encoding[:6])
        kept = style.encoding == "cp1252" and style.separator_line
        return style if kept else dataclasses.replace(style, encoding="utf-8-sig")

    def _record(self) -> Path:
        return self._home.parent / f".{self._home.name}.asked.json"
