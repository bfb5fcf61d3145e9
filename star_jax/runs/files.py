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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from star_jax.errors import DataError

JsonObject = dict[str, Any]


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

    A link stays one, and what it leads to is written; a file that exists keeps its permissions.
    """
    path = _behind_link(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """`write_bytes_atomic` in UTF-8."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """Writes an indented JSON document; errors as in `plain`."""
    write_text_atomic(path, json.dumps(plain(value, path.name), indent=2, ensure_ascii=False) + "\n")


def write_jsonl_atomic(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line; errors as in `plain`, naming the line."""
    lines = [
        json.dumps(plain(row, f"{path.name} line {number}"), ensure_ascii=False) + "\n"
        for number, row in enumerate(rows, start=1)
    ]
    write_text_atomic(path, "".join(lines))


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
    path = _behind_link(path)
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


def _behind_link(path: Path) -> Path:
    """What a link leads to, which need not exist; any other path as it is."""
    return path.resolve() if path.is_symlink() else path


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


def read_json(path: Path) -> Any:
    """Reads a JSON document; a `DataError` names a file that is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); restore it or delete its run folder") from None


def read_jsonl(path: Path) -> list[JsonObject]:
    """Reads one JSON object a line, or nothing where the file does not exist; a `DataError` names a bad line."""
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON ({error}); delete its run folder") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not an object; delete its run folder")
        rows.append(row)
    return rows


def read_yaml(path: Path) -> JsonObject:
    """Reads a YAML mapping; a `DataError` names a file that is not one."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a mapping of settings")
    return value


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
