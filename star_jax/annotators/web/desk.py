"""The table of labels as the page works on it: every answer is on disk before the next example is shown.

The table stays the one source of truth. It is read anew whenever the file has changed, so that it may be edited by
hand in between, and nothing of it is kept anywhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from star_jax.annotators.label_table import Asked, Cell, LabelTable
from star_jax.annotators.web import opinions
from star_jax.annotators.web.opinions import Given
from star_jax.config import SKIP
from star_jax.data.skips import is_skip, refuse_near_skip
from star_jax.errors import DataError

LONGEST_NAME, LONGEST_TEXT = 40, 100_000
"""Characters of a person's name, and of an answer."""


class Sheet(NamedTuple):
    """What the table says at one moment.

    Attributes:
      cells: id -> row, of what the strategies of this page ask for, in the table's order.
      asked: id -> what was asked for.
    """

    cells: Mapping[str, Cell]
    asked: Mapping[str, Asked]

    def why(self, name: str) -> Mapping[str, Any]:
        """What is known of a request; empty where nothing is."""
        return self.asked[name].why if name in self.asked else {}


@dataclass(frozen=True)
class Scope:
    """Which rows of a table a page is for.

    Attributes:
      strategies: names of those whose requests are shown; all where empty.
      skip: what stands for an example that cannot be labelled.
    """

    strategies: Collection[str] = ()
    skip: str = SKIP

    def has(self, asked: Asked | None) -> bool:
        """Whether what was asked for is shown."""
        return not self.strategies or asked is None or not asked.strategies or self._shared(asked)

    def _shared(self, asked: Asked) -> bool:
        return bool(set(asked.strategies) & set(self.strategies))


class Desk:
    """Reads the table, and writes one answer at a time into it."""

    def __init__(self, table: LabelTable, scope: Scope | None = None) -> None:
        """A desk.

        Args:
          table: of labels, which exists.
          scope: which rows are shown.
        """
        self.table = table
        self.scope = scope or Scope()
        self._lock = threading.Lock()
        self._read: tuple[object, Sheet] | None = None

    def version(self) -> object:
        """Something that is another whenever the table has changed."""
        try:
            found = self.table.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def sheet(self) -> Sheet:
        """What the table says now.

        Raises:
          DataError: it is gone, or cannot be read; every place is named.
        """
        with self._lock:
            version = self.version()
            if self._read is None or self._read[0] != version:
                self._read = (version, self._fresh())
            return self._read[1]

    def missing(self) -> int:
        """How many labels there are to give; errors as those of `sheet`."""
        return sum(not cell.text for cell in self.sheet().cells.values())

    def names(self) -> list[str]:
        """Ids of what was asked for; errors as those of `sheet`."""
        return list(self.sheet().cells)

    def _fresh(self) -> Sheet:
        if not self.table.exists():
            raise DataError(f"{self.table.path} is gone; put it back, or run the experiment again for a new one")
        asked, cells = self.table.asked(), self.table.cells()
        shown = {name: cell for name, cell in cells.items() if self.scope.has(asked.get(name))}
        return Sheet(shown, asked)

    def answer(self, name: str, text: str, who: str = "", seen: str | None = None, decide: bool = False) -> None:
        """Writes a label.

        Args:
          name: id of the example.
          text: the label, as a person writes it.
          who: the person's name; empty where nobody says.
          seen: what was written there when the person was shown it; anything when None.
          decide: whether it counts even where another person's label does.

        Raises:
          DataError: the table cannot be read or has no such example, the label is none, or somebody has written
            another one in the meantime.
        """
        text = _with_plain_lines(text).strip()
        answers = self.sheet().why(name).get("answers")
        if not text:
            raise DataError("the answer is empty; write one, or skip the example")
        if len(text) > LONGEST_TEXT:
            raise DataError(f"the answer has {len(text):,} characters; write at most {LONGEST_TEXT:,}")
        if answers and text not in answers and not is_skip(text, self.scope.skip):
            raise DataError(f"the answer is {text!r}; choose one of {', '.join(answers)}")
        if not answers and not is_skip(text, self.scope.skip):
            refuse_near_skip(text, self.scope.skip)
        given = Given(text, clean_name(who), _now())
        self._change(name, partial(_written, given=given, seen=seen, decide=decide))

    def skip(self, name: str, reason: str = "", who: str = "", seen: str | None = None, decide: bool = False) -> None:
        """Writes that an example cannot be labelled, and why; arguments and errors as those of `answer`."""
        given = Given(self.scope.skip, clean_name(who), _now(), " ".join(reason.split())[:LONGEST_TEXT])
        self._change(name, partial(_written, given=given, seen=seen, decide=decide))

    def take_back(
        self, name: str, who: str = "", seen: str | None = None, taken: Callable[[], bool] = lambda: False
    ) -> None:
        """Empties what a person has written.

        Args:
          name, who, seen: as in `answer`.
          taken: whether a run may have read it. It is asked while the table is locked, and a run locks its folder
            before it reads the table: one that is not at work then will find the cell empty.

        Raises:
          DataError: as `answer`; or it was taken.
        """

        def emptied(cell: Cell) -> Cell:
            if taken():
                raise DataError("a run that was started in the meantime has this answer; correct it instead")
            return _emptied(cell, clean_name(who), seen)

        self._change(name, emptied)

    def _change(self, name: str, change: Callable[[Cell], Cell]) -> None:
        with self.table.locked():
            if not self.table.exists():
                raise DataError(f"{self.table.path} is gone; put it back, and give the answer again")
            cells = self.table.cells()
            if name not in cells:
                raise DataError(f"{self.table.path} has no row of id {name!r} any more; the answer was not written")
            self.table.write_cells({**cells, name: change(cells[name])})


def _written(cell: Cell, given: Given, seen: str | None, decide: bool = False) -> Cell:
    counts = decide or not opinions.is_second(cell, given.who)
    if counts and _with_plain_lines(cell.text) != given.text:
        _refuse_unseen(cell, seen)
    return opinions.decided(cell, given) if decide else opinions.answered(cell, given)


def _emptied(cell: Cell, who: str, seen: str | None) -> Cell:
    if not opinions.is_second(cell, who):
        _refuse_unseen(cell, seen)
    return opinions.taken_back(cell, who)


def _refuse_unseen(cell: Cell, seen: str | None) -> None:
    """Refuses to replace a label that the person was not shown; browsers and spreadsheets end lines in their own way.

    Raises:
      DataError: saying what is written there.
    """
    if seen is not None and _with_plain_lines(seen) != _with_plain_lines(cell.text):
        said = f"labelled {cell.text!r}" if cell.text else "emptied"
        raise DataError(f"the example has been {said} in the meantime; look at it, and answer again if that is wrong")


def _with_plain_lines(text: str) -> str:
    """A text whose lines end as on Unix."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def clean_name(who: str) -> str:
    """A name as it can stand in a column's name."""
    return " ".join(who.replace("(", " ").replace(")", " ").split())[:LONGEST_NAME]


def _now() -> str:
    """To the millisecond, so that the order of answers can be told by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
