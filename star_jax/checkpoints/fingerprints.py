"""Hashes that tell whether a model or adapter folder is the one it was.

Files of up to `READ_AT_MOST` bytes together are read whole. Of more, pieces of every tensor are read, so that weights
that were trained on, merged or replaced are noticed, and the largest models take a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from star_jax.checkpoints.files import HUB_FILES

READ_AT_MOST = 1 << 28
"""Bytes of a folder's large files that are read, but for one piece of each tensor."""

PIECE = (1 << 12, 1 << 16)
"""Bytes that are read at a time, at least and at most."""

_RULE = "tensors:"
"""Beginning of a fingerprint, which tells it from one of an earlier version."""

_ENDS = 1 << 20
"""Bytes at both ends of a file that earlier versions read."""


class _Span(NamedTuple):
    """Part of a file that is sampled by itself: a tensor, or all of a file that is no safetensors."""

    file: Path
    start: int
    size: int


def folder_fingerprint(folder: Path) -> str:
    """Hash of the files of `HUB_FILES` in a model or adapter folder: their names, sizes and contents as said above."""
    files = _files(folder)
    digest = hashlib.sha256()
    spans: list[_Span] = []
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        spans += _spans(file)
    whole = sum(file.stat().st_size for file in files)
    share = 1.0 if whole <= READ_AT_MOST else READ_AT_MOST / whole
    piece = min(max(READ_AT_MOST // max(len(spans), 1), PIECE[0]), PIECE[1])
    for span in spans:
        with span.file.open("rb") as content:
            if share == 1.0:
                content.seek(span.start)
                _update(digest, content, span.size)
            else:
                for offset in _offsets(span.size, share, piece):
                    content.seek(span.start + offset)
                    digest.update(content.read(min(piece, span.size - offset)))
    return _RULE + digest.hexdigest()


def former_fingerprint(folder: Path) -> str:
    """What versions before 0.2 had: of large files, their first and last MiB."""
    digest = hashlib.sha256()
    for file in _files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(_ENDS))
            if size > _ENDS:
                content.seek(-_ENDS, os.SEEK_END)
                digest.update(content.read())
    return digest.hexdigest()


def fingerprint_like(stored: object, folder: Path, now: str) -> str:
    """`now`, the fingerprint of a folder; or `stored`, where an earlier version made it of this folder as it is."""
    earlier = isinstance(stored, str) and not stored.startswith(_RULE) and stored == former_fingerprint(folder)
    return str(stored) if earlier else now


def _files(folder: Path) -> list[Path]:
    return sorted({file for pattern in HUB_FILES for file in folder.glob(pattern)})


def _spans(file: Path) -> Iterator[_Span]:
    """A file's tensors, and what lies before them; all of a file that is not what its name says."""
    size = file.stat().st_size
    tensors = _tensors(file, size) if file.suffix == ".safetensors" else []
    if not tensors:
        yield _Span(file, 0, size)
        return
    first = min(tensor.start for tensor in tensors)
    yield _Span(file, 0, first)
    yield from sorted(tensors, key=lambda tensor: tensor.start)


def _tensors(file: Path, size: int) -> list[_Span]:
    with file.open("rb") as content:
        head = content.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if not 0 < length <= size - 8:
            return []
        try:
            header = json.loads(content.read(length))
            offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
            found = [_Span(file, 8 + length + int(start), int(end) - int(start)) for start, end in offsets]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return []
    sound = all(span.start >= 8 + length and span.size >= 0 and span.start + span.size <= size for span in found)
    return found if sound else []


def _offsets(size: int, share: float, piece: int) -> Iterator[int]:
    """Where pieces of a span begin, evenly spread, its first and its last bytes among them."""
    count = max(1, min(-(-size // piece), round(size * share / piece)))
    if count == 1:
        # Of one piece, the middle: tensors begin and end alike more often than not.
        yield max(0, (size - piece) // 2)
        return
    for number in range(count):
        yield number * (size - piece) // (count - 1)


def _update(digest: Any, content: BinaryIO, size: int) -> None:
    while size > 0:
        block = content.read(min(size, 1 << 22))
        if not block:
            return
        digest.update(block)
        size -= len(block)
