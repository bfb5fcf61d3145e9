"""Rows of a file that takes long to compute, kept beside it until all are there. Files only."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from star_jax.runs.files import JsonObject, plain


class PartialRows:
    """The first rows of an output file, as far as an interrupted command has come.

    Attributes:
      rows: those that there are.
    """

    def __init__(self, out: Path | None, origin: str) -> None:
        """Reads what an earlier command has left, if it had the same origin; else begins anew.

        Args:
          out: the file that is to be written; None keeps nothing.
          origin: hash of everything that the rows depend on.
        """
        self._path = None if out is None else out.with_name(f".{out.name}.partial")
        self.rows: list[JsonObject] = []
        if self._path is None:
            return
        found = _whole_lines(self._path)
        if found[:1] == [{"origin": origin}]:
            self.rows = found[1:]
        _write(self._path, "wb", [{"origin": origin}, *self.rows])

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Appends rows; they are on the disk when this returns."""
        added = [dict(row) for row in rows]
        self.rows += added
        if self._path is not None:
            _write(self._path, "ab", added)

    def remove(self) -> None:
        """Once the output file is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _whole_lines(path: Path) -> list[JsonObject]:
    """The objects up to the first line that is none: the last one may have been cut."""
    rows: list[JsonObject] = []
    if not path.is_file():
        return rows
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def _write(path: Path, mode: str, rows: Iterable[Mapping[str, object]]) -> None:
    with open(path, mode) as file:
        for row in rows:
            file.write(json.dumps(plain(row)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
