"""Tables as spreadsheets save them: which encoding, which sign between cells, where the header is.

What belongs here: from bytes to records of cells, each with its line and its row on a person's screen. What the cells
mean is for those who ask.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from star_jax.errors import DataError

LONGEST_CELL = 10_000_000
"""Characters of a cell: twenty novels, and more than a model reads."""

DELIMITERS = ",;\t"
"""What may stand between cells; where a table reads well with several of them, the first counts."""

_SAMPLE = 1 << 16
"""Bytes that the delimiter is told by."""

_TRIED_RECORDS = 20

_CHUNK = 1 << 20

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Those of UTF-32 first: one of them begins like one of UTF-16."""

_WESTERN = "cp1252"

_NOT_WESTERN = re.compile(rb"[\xc0-\xff]{4}|(?:[\x80-\x9f][\xa0-\xff]){3}|(?<![A-Za-z\xc0-\xff])\xff")
"""Four letters with accents, one after the other; three signs such as quotes and dashes, each before such a letter; a y
with dots that follows no letter: words of Windows-1252 have none of these, those of other code pages do."""

_ACCENTED = re.compile(rb"[\x20-\x7e\x80-\xff]{0,12}[\x80-\xff][\x20-\x7e\x80-\xff]{0,12}")

_SEPARATOR_LINE = re.compile(r'\ufeff?"?sep=(.)"?;*\r?\n?', re.IGNORECASE)
"""A first line that tells spreadsheets of the delimiter."""

_log = logging.getLogger(__name__)


class LineNumber(int):
    """The line that a record begins on, counted from 1.

    Attributes:
      row: its row in a spreadsheet, where a cell with line breaks is one row all the same.
    """

    row: int

    def __new__(cls, line: int, row: int) -> LineNumber:
        """A line that is that row of a spreadsheet."""
        number = super().__new__(cls, line)
        number.row = row
        return number


Record = tuple[LineNumber, list[str]]


@dataclass(frozen=True)
class TableStyle:
    """How a table is written.

    Attributes:
      delimiter: between cells.
      encoding: Python's name of it, with the byte order mark where there is one.
      separator_line: whether the first line names the delimiter, `sep=;`.
    """

    delimiter: str = ","
    encoding: str = "utf-8-sig"
    separator_line: bool = False


class TornTable(DataError):
    """A table whose records cannot be told apart.

    Attributes:
      line: that it is torn at.
    """

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def table_style(path: Path) -> TableStyle:
    """How a table is written, told by its beginning and, for the encoding, by all of it.

    Raises:
      DataError: it is no text, or in an encoding that cannot be told.
    """
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
    encoding = _encoding(path, head)
    sample = codecs.getincrementaldecoder(encoding)("replace").decode(head, final=len(head) < _SAMPLE)
    named = _SEPARATOR_LINE.match(sample)
    if named:
        return TableStyle(named[1], encoding, True)
    if len(head) == _SAMPLE:
        sample = sample[: max(sample.rfind("\n"), sample.rfind("\r")) + 1] or sample
    return TableStyle(_delimiter(sample), encoding)


def read_records(path: Path, style: TableStyle | None = None) -> Iterator[Record]:
    """The header of a table, and its records; what is blank before the header is passed over, and so are blank lines.

    Args:
      path: of the table.
      style: how it is written; found out where None.

    Raises:
      TornTable: quotes do not match.
      DataError: as `table_style`.
    """
    style = style or table_style(path)
    csv.field_size_limit(LONGEST_CELL)
    line = 1
    try:
        with path.open(encoding=style.encoding, newline="") as file:
            hidden = 1 if style.separator_line and next(file, "") else 0
            reader = csv.reader(file, strict=True, delimiter=style.delimiter)
            line, begun = 1 + hidden, False
            for row, cells in enumerate(reader, start=1):
                here, line = line, reader.line_num + 1 + hidden
                begun = begun or any(cell.strip() for cell in cells)
                if begun and cells:
                    yield LineNumber(here, row), cells
    except UnicodeError as error:
        raise DataError(f"{path}: is not valid {style.encoding} ({error}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        # Where quotes do not match, nobody knows where the next row begins: no single row can be left out.
        raise TornTable(line, f"is not valid CSV ({error}); check its quotes") from error


def write_table(style: TableStyle, records: Iterable[Iterable[str]]) -> bytes:
    """A table in a style; in UTF-8 where the style's encoding does not have the characters.

    Every cell is in quotes, so that a lone carriage return in one is no end of a record.
    """
    text = io.StringIO()
    if style.separator_line:
        text.write(f"sep={style.delimiter}\n")
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL, delimiter=style.delimiter).writerows(records)
    try:
        return text.getvalue().encode(style.encoding)
    except UnicodeEncodeError:
        return text.getvalue().encode("utf-8-sig")


def _encoding(path: Path, head: bytes) -> str:
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path}: is a spreadsheet program's own file; export the sheet as CSV in UTF-8")
    if b"\0" in head:
        even, odd = head[::2].count(0), head[1::2].count(0)
        if max(even, odd) > len(head) // 8 and min(even, odd) * 8 < max(even, odd):
            return "utf-16-be" if even > odd else "utf-16-le"
        raise DataError(f"{path}: holds NUL bytes and is no text; save it as CSV in UTF-8")
    return "utf-8" if _is_utf8(path) else _western(path)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _western(path: Path) -> str:
    """Windows-1252, which spreadsheets save CSV in where they are not told otherwise, if the file reads as that."""
    shown = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(_WESTERN)
            except UnicodeDecodeError:
                shown = None
                break
            if _NOT_WESTERN.search(line):
                shown = None
                break
            found = None if shown else _ACCENTED.search(line)
            if found:
                shown = f"line {number}: {found[0].decode(_WESTERN).strip()!r}"
    if shown is None:
        raise DataError(f"{path}: is not UTF-8; save the file in that encoding")
    _log.warning(
        "%s: is not UTF-8 and is read as Windows-1252; if this is not right, save it as UTF-8: %s", path, shown
    )
    return _WESTERN


def _delimiter(sample: str) -> str:
    """The delimiter that most records have as many cells with as the header, of those that the header has."""
    best, found = 0.0, DELIMITERS[0]
    for delimiter in DELIMITERS:
        records = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
        try:
            filled = (record for record in records if any(cell.strip() for cell in record))
            header, *rest = itertools.islice(filled, 1 + _TRIED_RECORDS)
        except (csv.Error, ValueError):  # not one record
            continue
        width = len(without_blanks(header))
        even = [len(without_blanks(record)) <= width <= len(record) for record in rest]
        share = (1 + sum(even)) / (1 + len(even))
        if width > 1 and share > best:
            best, found = share, delimiter
    return found


def without_blanks(cells: list[str]) -> list[str]:
    """The cells up to the last that is not blank."""
    end = len(cells)
    while end and not cells[end - 1].strip():
        end -= 1
    return cells[:end]
