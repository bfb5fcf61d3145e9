"""Raw rows from files and hub data sets, each with its number, whatever the format.

What belongs here: reading JSONL, CSV, Parquet and the hub, and saying what is wrong with a source or a row as such.
What a row means is for `loading.py` and the tasks.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from star_jax.data.tables import LONGEST_CELL, TornTable, read_records, without_blanks
from star_jax.documents import UnreadableError, decoded, parse_json_object
from star_jax.errors import DataError

Record = dict[str, Any]
Numbered = Iterator[tuple[int, Record | DataError]]

LONGEST_LINE = 1 << 27
"""Bytes of a line of JSON: 128 MiB, which a row of several long texts stays below."""

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")


Source = str | Sequence[Mapping[str, Any]]
"""Where rows come from: a file's path or a hub name, or rows that are in memory already."""


def read_rows(source: Source, split: str, *, may_be_empty: bool = False) -> Numbered:
    """Raw rows with their numbers, counted from 1: lines of a JSONL or CSV file, rows of anything else.

    A row that cannot be read comes as the `DataError` that says why, for the caller to raise or to count.

    Args:
      source: a .jsonl, .json (one object a line), .csv, .tsv or .parquet file, or a hub name,
        `NAME[:CONFIG][@SPLIT]`, such as `openai/gsm8k:main` or `google/boolq@validation`. A `~` is the user's home.
        Or the rows themselves, a sequence of mappings.
      split: the hub data set's split, unless `source` names one; a file is read whole.
      may_be_empty: whether no row at all is fine.

    Raises:
      DataError: no such file or data set, an unknown format, a file that cannot be taken apart into rows, or no row.
    """
    if not isinstance(source, str):
        yield from _read_memory(source)
        return
    path = Path(os.path.expanduser(source))
    reader = _READERS.get(path.suffix.lower())
    if reader is None and path.exists():
        raise DataError(f"{source}: no format is known by this name; use a file that ends in {', '.join(_READERS)}")
    if reader is not None and not path.is_file():
        raise DataError(f"{source}: there is no such file; check the path")
    number = 0
    try:
        for number, row in _read_hub(source, split) if reader is None else reader(path):
            yield number, _without_long_texts(row)
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error})") from error
    if number == 0 and not may_be_empty:
        raise DataError(f"{source}: holds no rows; it needs at least one")


def _read_memory(rows: Sequence[Mapping[str, Any]]) -> Numbered:
    if not rows:
        raise DataError("there are no rows; give at least one")
    for number, row in enumerate(rows, start=1):
        yield number, dict(row) if isinstance(row, Mapping) else _no_object(row)


def base_name(source: Source, split: str) -> str:
    """What rows without an id of their own are named after: the file's name, or that of the data set and its split."""
    if not isinstance(source, str):
        return "row"
    match = None if is_file_name(source) else _HUB_NAME.fullmatch(source)
    return Path(source).stem if match is None else f"{Path(match['name']).name}-{match['split'] or split}"


def is_file_name(source: str) -> bool:
    """Whether a source is a file's name, by its ending, and not that of a data set on the hub."""
    return Path(source).suffix.lower() in _READERS


def unit(source: Source) -> str:
    """What the numbers of `read_rows` count: `line` or `row`."""
    return "line" if isinstance(source, str) and Path(source).suffix.lower() in _LINE_FORMATS else "row"


def place(source: Source, number: int) -> str:
    """Where a row stands, for messages."""
    return f"{source}, {position(source, number)}" if isinstance(source, str) else f"row {number}"


def position(source: Source, number: int) -> str:
    """Where a row stands in its source: its line, and its row in a spreadsheet where that is another number."""
    row = getattr(number, "row", number)
    return f"{unit(source)} {number}" + ("" if row == number else f" (row {row} of the spreadsheet)")


# JSONL and CSV are read here and not through `datasets`: it would lose the line numbers, and a malformed row in the
# middle of a file would be reported as a failed conversion of the whole.
def _read_jsonl(path: Path) -> Numbered:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path}: is UTF-16 and not UTF-8; save the file in that encoding")
        file.seek(0)
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            if line.isspace():
                continue
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, DataError(f"is longer than {LONGEST_LINE:,} bytes; write one object a line")
                continue
            try:
                # Many a program writes NaN where a value is missing.
                yield number, parse_json_object(decoded(line).rstrip("\r\n"), finite=False)
            except UnreadableError as error:
                advice = "" if "save it" in error.problem else "; write one object a line"
                yield number, DataError(f"{error.problem}{advice}")


def _without_long_texts(row: Record | DataError) -> Record | DataError:
    """The row, or the error that says which of its texts is too long to be one."""
    for name, value in row.items() if isinstance(row, dict) else ():
        if isinstance(value, str) and len(value) > LONGEST_CELL:
            return DataError(f"field '{name}' has {len(value):,} characters; at most {LONGEST_CELL:,} are read")
    return row


def _no_object(value: Any) -> DataError:
    return DataError(f"is a {type(value).__name__}, not an object; write one object a line")


class ShortRow(DataError):
    """A record that lacks cells at its end.

    Attributes:
      cells: column -> text of those that are there.
    """

    def __init__(self, message: str, cells: Mapping[str, str]) -> None:
        super().__init__(message)
        self.cells = dict(cells)


def _read_csv(path: Path) -> Numbered:
    records = read_records(path)
    try:
        number, header = next(records, (1, []))
        if twice := [name for name in header if name.strip() and header.count(name) > 1]:
            raise DataError(f"{place(str(path), number)}: names column '{twice[0]}' twice; rename one of them")
        names = _column_names(header)
        width = len(without_blanks(header))
        for line, cells in records:
            cells = cells[: len(header)] + without_blanks(cells[len(header) :])
            named = {name: cell for name, cell in zip(names, cells, strict=False) if name is not None}
            named |= _nameless(names, cells)
            if width <= len(cells) <= len(header):
                yield line, named
                continue
            problem = f"has {len(cells)} cells where the header has {width}; quote a cell that holds a comma"
            yield line, ShortRow(problem, named) if len(cells) < width else DataError(problem)
    except TornTable as error:
        raise DataError(f"{place(str(path), error.line)}: {error}") from error


def _column_names(header: Sequence[str]) -> list[str | None]:
    """The names of columns; None for those without, but for a single one among the others, whose name is empty."""
    nameless = [index for index, name in enumerate(header) if not name.strip()]
    alone = len(nameless) == 1 and nameless[0] < len(header) - 1
    return [name if name.strip() or alone else None for name in header]


def _nameless(names: Sequence[str | None], cells: Sequence[str]) -> dict[str, str]:
    """What is written in columns without a name: nothing, where a spreadsheet has saved empty columns."""
    found = zip(range(len(cells)), names, cells, strict=False)
    return {f"column {index + 1}": cell for index, name, cell in found if name is None and cell.strip()}


def _read_parquet(path: Path) -> Numbered:
    import datasets  # takes seconds to import; most runs read JSONL

    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it tells of a damaged file itself, at length, before it raises
    try:
        # Streaming reads the file where it lies; otherwise a copy of it would go to the user's cache.
        rows = datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train", streaming=True)
        yield from enumerate(rows, start=1)
    except Exception as error:  # the reader below has many exception types, and all of them mean this
        raise DataError(f"{path}: is not a valid Parquet file ({_first_line(error)}); write it again") from error
    finally:
        logger.setLevel(level)


def _read_hub(source: str, split: str) -> Numbered:
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: is neither a file nor a hub name, NAME[:CONFIG][@SPLIT]; check the path")
    import datasets  # takes seconds to import; most runs read local files

    load = partial(datasets.load_dataset, match["name"], match["config"], split=match["split"] or split)
    try:
        rows = load()
        if getattr(getattr(rows, "info", None), "builder_name", None) == "csv":
            # Of CSV files it would take labels such as NA and None for empty cells.
            rows = load(keep_default_na=False, na_values=[""])
    except Exception as error:  # client, network and file system each have their own; the user can do the same
        raise DataError(
            f"{source}: is no file here, and cannot be loaded from the hub ({_first_line(error)}); check the name "
            f"(NAME[:CONFIG][@SPLIT]) and the connection, or give a local file"
        ) from error
    yield from enumerate(rows, start=1)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".tsv": _read_csv,
}
_LINE_FORMATS = (".jsonl", ".json", ".csv", ".tsv")
