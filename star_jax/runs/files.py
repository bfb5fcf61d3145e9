"""Files that appear whole or not at all: atomic writes and strict reads of text, JSON, JSON lines, YAML and folders.

No JAX. NaN and infinity are never written: a quantity that does not exist is None, anything else is a mistake.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from star_jax.documents import (
    Kind,
    UnreadableError,
    check_fields,
    exists,
    parse_json_object,
    parse_yaml,
    read_json_object,
    read_text,
)
from star_jax.errors import DataError

JsonObject = dict[str, Any]

RESTORE = "restore it from a copy, or delete the run's folder to start again"
"""What to do about a damaged file of a run."""

MOST_BYTES_OF_ROWS = 1 << 33
"""Largest file of rows that is read: 8 GiB, since a test set may be large, and its predictions with it."""


def plain(value: Any, where: str = "value") -> Any:
    """The value as JSON and YAML know it: dict, list, str, bool, int, float or None.

    Tuples become lists and scalars of array libraries become Python numbers.

    Args:
      value: anything made of mappings, sequences and scalars.
      where: dotted name of the value, for errors.

    Raises:
      ValueError: a float is NaN or infinite; a quantity that does not exist is None.
      TypeError: something has no plain form; both name the key.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; only finite numbers are written (None for one that does not exist)")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; keys must be strings")
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return plain(value.item(), where)
    raise TypeError(f"{where} is of type {type(value).__name__}, which cannot be written as JSON")


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, sees either the old content or the whole new one.

    A link stays one, and what it leads to is written; a file keeps its permissions. What is no file, such as a pipe or
    /dev/null, is written to as it is: to replace it would take it away from everybody.
    """
    write_chunks_atomic(path, [content])


def write_chunks_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """The same for a content that comes in pieces, which are never held together where the path is that of a file."""
    path = _target(path)
    if _is_special(path):
        whole = b"".join(chunks)
        with open(path, "wb") as stream:
            stream.write(whole)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name(path))
    try:
        with open(temporary, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Finds out whether `write_bytes_atomic` could write a file, and leaves nothing behind.

    For before hours of work, whose result would be lost if only then it turned out that it cannot be kept.

    Raises:
      OSError: it could not.
    """
    path = _target(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_special(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    temporary = path.with_name(_temporary_name(path))
    try:
        with open(temporary, "wb"):
            pass
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _temporary_name(path: Path) -> str:
    # No longer than a name may be: the temporary one is longer than the file's own.
    return f".{path.name[:200]}.{os.getpid()}.tmp"


def _target(path: Path) -> Path:
    """Where a link leads, and any other path itself; an `OSError` for links that go in a circle."""
    if not path.is_symlink():
        return path
    with suppress(FileNotFoundError):
        path.stat()
    return Path(os.path.realpath(path))


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` in UTF-8."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """Writes an indented JSON document; errors as in `plain`."""
    write_text_atomic(path, json.dumps(plain(value, path.name), indent=2, ensure_ascii=False) + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line; errors as in `plain`, naming the line."""
    lines = (
        json.dumps(plain(row, f"{path.name} line {number}"), ensure_ascii=False) + "\n"
        for number, row in enumerate(rows, start=1)
    )
    write_chunks_atomic(path, (line.encode() for line in lines))


def write_yaml_atomic(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a YAML document with the keys in their own order; errors as in `plain`."""
    write_text_atomic(path, yaml.safe_dump(plain(value, path.name), sort_keys=False, allow_unicode=True))


def replace_folder_atomic(path: Path, writer: Callable[[Path], None]) -> None:
    """Replaces a whole folder by what `writer` puts into an empty one beside it.

    No portable call swaps two folders, so between two renames the old one lies under a hidden name; `clean`
    puts it back if the process dies exactly there.

    Args:
      path: the folder, which may or may not exist.
      writer: called with the new folder; if it raises, the old folder stays as it is.
    """
    path = _target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        with full_disk_named(path):
            writer(new)
        for file in sorted(new.rglob("*")):
            _sync_file(file)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    _sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """A full disk that a library's own exception tells of becomes an `OSError` that names the path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _sync_file(path: Path) -> None:
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Makes a rename durable: the new name is data of the folder, not of the file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, fields: Mapping[str, Kind] | None = None, required: Iterable[str] = ()) -> JsonObject:
    """Reads an object of a run folder.

    Args:
      path: of a JSON file.
      fields: name -> what its value must be where it is there; anything when None.
      required: fields that must be there.

    Raises:
      DataError: the file cannot be read, is not JSON, or a field is not what it should be; file and field are named.
    """
    with _damage_named(path):
        value = read_json_object(path)
        check_fields(value, fields or {}, required)
        return value


def read_jsonl(path: Path, fields: Mapping[str, Kind] | None = None, required: Iterable[str] = ()) -> list[JsonObject]:
    """Reads one object a line, or nothing where there is no such file; arguments and errors as those of `read_json`."""
    if not exists(path):
        return []
    rows = []
    with _damage_named(path):
        lines = read_text(path, MOST_BYTES_OF_ROWS).split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            with _damage_named(path, number):
                rows.append(parse_json_object(line))
                check_fields(rows[-1], fields or {}, required)
    return rows


def read_yaml(path: Path, check: Callable[[JsonObject], object] = lambda value: None) -> JsonObject:
    """Reads a YAML mapping of a run folder.

    Args:
      path: of the file.
      check: raises `UnreadableError` where the mapping will not do.

    Raises:
      DataError: the file cannot be read, is no mapping, or does not pass the check; file and line are named.
    """
    with _damage_named(path):
        value = parse_yaml(read_text(path)).value
        check(value)
        return value


@contextmanager
def _damage_named(path: Path, line: int | None = None) -> Iterator[None]:
    """What cannot be read inside becomes a `DataError` that names the file, and the line where it is known."""
    try:
        yield
    except UnreadableError as error:
        raise DataError(f"{UnreadableError(error.problem, error.line or line).at(path)}; {RESTORE}") from None


def clean(path: Path) -> None:
    """Removes what a killed process left half written in a folder, and undoes a half-done swap of folders.

    Only for a folder that no other process writes to.
    """
    for old in list(path.rglob(".*.old")):
        target = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if target.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, target)
    for leftover in list(path.rglob(".*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
