"""What flags name to be written: refused, before any work, where something would be lost by it; and rows, written."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star_jax.data.cells import as_text
from star_jax.errors import ConfigError
from star_jax.runs.files import check_writable, write_jsonl_atomic, write_text_atomic

STDOUT = "-"
"""What a flag says for it."""

TABLES = (".csv", ".jsonl")
"""Endings of files that `write_rows` writes."""

Read = Mapping[str, str | Path | None]
"""Flag, or what else it is -> path of what is read. None, and what is no path here, such as a hub name, do no harm."""

_NUMBER = re.compile(r"[+-]?\d[\d.,]*")
"""A text that begins as a formula does and is none."""


def check_output_file(flag: str, out: str, files: Read, folders: Read, endings: Sequence[str] = ()) -> Path | None:
    """The path of a file to write, or None for stdout.

    Args:
      flag: that names it, for messages.
      out: as it was given; the file need not exist, and a link counts as what it leads to.
      files: that are read, which must not be written over.
      folders: that are read as a whole, in which nothing may be written.
      endings: that the file may have; any where there are none.

    Raises:
      ConfigError: it is one of those that are read, is in a folder that is read, has another ending, or cannot be
        written; both flags are named.
    """
    if out == STDOUT:
        return None
    if not out.strip() or Path(out) == Path():
        raise ConfigError(f"{flag} is empty; name a file, or - for stdout")
    path = Path(out).expanduser()
    if endings and path.suffix.lower() not in endings:
        raise ConfigError(f"{flag} is {out}; its ending must be {' or '.join(endings)}")
    if path.is_dir():
        raise ConfigError(f"{flag} is {out}, which is a folder; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} is {out}; there is no folder {path.parent}, make it first")
    for read, name in files.items():
        if name and _is_same(path, Path(name).expanduser()):
            raise ConfigError(f"{flag} is {out}, the file of {read}, which would be lost; name another file")
    _refuse_inside(flag, out, folders)
    try:
        check_writable(path)
    except OSError as error:
        raise ConfigError(f"{flag} is {out}, which cannot be written ({error.strerror}); name another file") from None
    return path


def check_output_folder(flag: str, out: str, folders: Read) -> None:
    """Refuses a folder to write that is empty text, or inside one that is read; arguments as in `check_output_file`.

    Raises:
      ConfigError: naming the flags.
    """
    if not out.strip():
        raise ConfigError(f"{flag} is empty; name a folder")
    _refuse_inside(flag, out, folders)


def _refuse_inside(flag: str, out: str, folders: Read) -> None:
    for read, name in folders.items():
        if name and _is_inside(Path(out).expanduser(), Path(name).expanduser()):
            raise ConfigError(f"{flag} is {out}, inside the folder of {read}, which is only read; name another place")


def write_rows(path: Path | None, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows, all with the same columns, to a file, whole or not at all, or as JSON lines to stdout."""
    if path is None:
        for row in rows:
            print(json.dumps(row, allow_nan=False, ensure_ascii=False))
    elif path.suffix.lower() == ".csv":
        write_text_atomic(path, _as_csv(rows))
    else:
        write_jsonl_atomic(path, rows)


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are of one file, by whichever links."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist, and a link may still be about to make it
        return os.path.realpath(one) == os.path.realpath(other) and (one.exists() or other.exists())


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or below it, by whichever links."""
    return folder.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


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
