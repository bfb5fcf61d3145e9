"""Rows written where a person asks for them: CSV or JSON lines, never over what is read."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from star_jax.annotators.label_table import as_text
from star_jax.cli.outputs import is_inside, is_same
from star_jax.errors import ConfigError
from star_jax.runs.files import check_writable, write_jsonl_atomic, write_text_atomic

ENDINGS = (".csv", ".jsonl")

_NUMBER = re.compile(r"[+-]?\d[\d.,]*")
"""A text that begins as a formula does and is none."""


def check_output(
    flag: str,
    out: str,
    inputs: Iterable[str | Path | None],
    folders: Iterable[Path] = (),
    endings: Sequence[str] = ENDINGS,
) -> Path | None:
    """The path of an output file, or None for stdout (`-`); before anything is computed.

    Args:
      flag: that names it, for messages.
      out: as it was given.
      inputs: files that are read, which must not be written over; names on the hub and None among them do no harm.
      folders: that are read as a whole, in which nothing may be written.
      endings: that the file may have.

    Raises:
      ConfigError: the ending is none of those, the file cannot be written, or it is one that is read.
    """
    if out == "-":
        return None
    path = Path(out).expanduser()
    if path.suffix.lower() not in endings:
        raise ConfigError(f"{flag} is {out}; its ending must be {' or '.join(endings)}")
    if path.is_dir():
        raise ConfigError(f"{flag} is {out}, which is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} is {out}; there is no folder {path.parent}, make it first")
    for read in inputs:
        if read is not None and is_same(path, Path(read).expanduser()):
            raise ConfigError(f"{flag} is {out}, which is read as well; name another file")
    for folder in folders:
        if is_inside(path, folder.expanduser()):
            raise ConfigError(f"{flag} is {out}, inside {folder}, which is only read; name a file elsewhere")
    try:
        check_writable(path)
    except OSError as error:
        raise ConfigError(f"{flag} is {out}, which cannot be written ({error.strerror}); name another file") from None
    return path


def write_rows(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows, all with the same columns, to a file, whole or not at all, or as JSON lines to stdout."""
    if path is None:
        for row in rows:
            print(json.dumps(row, allow_nan=False, ensure_ascii=False))
    elif path.suffix.lower() == ".csv":
        write_text_atomic(path, _as_csv(rows))
    else:
        write_jsonl_atomic(path, rows)


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """In quotes and with a byte order mark, as spreadsheets need it; no cell is a formula, and None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(rows[0] if rows else ())
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return "\ufeff" + text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) and _NUMBER.fullmatch(value) else as_text(str(value))
