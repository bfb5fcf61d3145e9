"""What cells mean where the program that wrote the table could not say it: labels, and what begins like a formula.

A column of whole numbers with gaps leaves most programs as one of fractions, `1.0`, and a gap as `NaN` or `NA`. The
other cells of the column tell what was meant: `NA` among numbers is a gap, among words it is a word.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from star_jax.config import SKIP
from star_jax.data.skips import is_skip
from star_jax.data.tasks.fields import is_missing, whole_number

_log = logging.getLogger(__name__)

GAPS = frozenset({"na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "nat", "null", "none"})
"""What programs write where a value is missing, in small letters."""

PICKS = ("id", "prompt", "response", "rank", "score")
"""Columns of a table of picks, whose texts `as_text` has written."""

_FORMULA = re.compile(r"'*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
"""How a cell begins that a spreadsheet would compute, or one that has been kept from it."""

_NUMBER = re.compile(r"[-+\u2212]?[0-9.][0-9.,' \u00a0\u202f]*(?:[eE][-+]?[0-9]+)?%?")
_WHOLE = re.compile(r"[-+]?[0-9]+\.0+")

Row = dict[str, Any]


def plain_row(row: Row) -> Row:
    """The row with Python's values for NumPy's."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}


def as_text(text: str) -> str:
    """A cell that spreadsheets take for text: an apostrophe before what they would compute."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_text(cell: str) -> str:
    """What `as_text` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def pick_row(row: Row) -> Row:
    """The row with the texts that its cells stand for, where it is one of a table with all columns of `PICKS`."""
    if not all(name in row for name in PICKS):
        return row
    return {name: from_text(value) if isinstance(value, str) else value for name, value in row.items()}


def clear_labels(rows: Iterable[Row], columns: Collection[str], skip: str = SKIP) -> None:
    """Writes into the rows what the cells of label columns mean.

    A cell that only says that a value is missing becomes None where all others in its column are numbers, or missing
    too. Texts such as `1.0` become `1` where the column has gaps and no other kind of number. Cells that say `skip`
    stay, and say nothing of the others.
    """
    everything = list(rows)
    for column in columns:
        rows = [row for row in everything if not _is_text(row.get(column), skip)]
        cells = [row for row in rows if column in row and not _is_gap(row[column])]
        marked = [row for row in rows if isinstance(row.get(column), str) and _is_gap(row[column])]
        if all(_is_number(row[column]) for row in cells):
            for row in marked:
                row[column] = None
            if len(cells) < len(rows):
                _drop_fractions(cells, column)


def warn_of_gaps(source: str, responses: Sequence[str]) -> None:
    """Says how many labels are words that often mean a missing value, and that they are taken as they stand."""
    found = [text.strip() for text in responses if text.strip().lower() in GAPS]
    if found and len(found) < len(responses):
        _log.warning(
            "%s: %d of %d labels say %s, which is taken as their text; leave a cell empty where there is no label",
            *(source, len(found), len(responses), " or ".join(sorted(set(found)))),
        )


def _is_text(value: Any, text: str) -> bool:
    return isinstance(value, str) and is_skip(value, text)


def _drop_fractions(rows: Sequence[Row], column: str) -> None:
    if all(isinstance(row[column], str) and _WHOLE.fullmatch(row[column].strip()) for row in rows):
        for row in rows:
            row[column] = whole_number(row[column])


def _is_gap(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and (not value.strip() or value.strip().lower() in GAPS))


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _NUMBER.fullmatch(value.strip()) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)
