"""Scores of batches as they come, kept beside what they are computed for until all are there. Files only.

A file of a pass begins with a line that says what determines its scores; a record for each batch follows:

    length of the description (4 bytes) | description: types and shapes, JSON | the arrays | checksum (16 bytes)

The checksum covers the batch itself too. A record that was cut, or is of another batch, ends what is taken over; the
file goes on from there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from jax import Array

from star_jax.active.state import LoopState, base_measures
from star_jax.data.batching import Batch
from star_jax.data.bucketing import Shapes
from star_jax.inference.batched import BatchLog
from star_jax.parallel.hosts import leads, readable, several, shared

FLUSH_SECONDS, SYNC_SECONDS = 1.0, 10.0
"""How often records are handed to the system, which keeps them if the process dies, and how often it is told to write
them to the disk, which keeps them if the machine does."""

_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 16


class PartialScores:
    """The passes of one computation, each in a file of its own, which are closed at the end of a `with`.

    Args:
      path: beginning of the files' names.
      origin: hash of everything that the scores depend on.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self._path, self._origin = path, origin
        self._open: dict[str, PartialPass] = {}  # in the leader alone

    def __enter__(self) -> PartialScores:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    def log(self, name: str) -> BatchLog:
        """What keeps the results of the pass of that name; asked for again, it begins from the start."""

        def begin() -> None:
            if name in self._open:
                self._open[name].close()
            self._open[name] = PartialPass(self._path.with_name(f"{self._path.name}-{name}"), self._origin)

        shared(begin)
        return _LedPass(self._open.get(name)) if several() else self._open[name]

    def close(self) -> None:
        """Closes the files, which stay."""
        for one in self._open.values():
            one.close()

    def remove(self) -> None:
        """Once what the scores were for is written."""
        self.close()
        self._open.clear()
        if leads():
            for file in self._path.parent.glob(f"{glob.escape(self._path.name)}-*"):
                file.unlink(missing_ok=True)


def query_origin(origin: str, state: LoopState, key: Array, shapes: Shapes) -> str:
    """Hash of what determines the scores of a round's query.

    Args:
      origin: hash of settings, data, model and software.
      state: before the round, whose adapter scores.
      key: PRNG key of the run.
      shapes: of batches, which settle how scores are rounded.
    """
    digest = hashlib.sha256(f"{origin} {state.round} {shapes} ".encode())
    for leaf in (
        state.pool.labelled_in,
        jax.random.key_data(key),
        *jax.tree.leaves(readable((state.adapter, base_measures(state)))),
    ):
        array = np.asarray(leaf)
        digest.update(f"{array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


class PartialPass:
    """An `inference.batched.BatchLog` in a file.

    Args:
      path: of the file; one of another origin is begun anew.
      origin: hash of everything that the scores depend on.
      clock: seconds.
    """

    def __init__(self, path: Path, origin: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._flushed = self._synced = clock()
        path.parent.mkdir(parents=True, exist_ok=True)
        # In one step: another process that computes the same scores may remove the file at any moment.
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        header = json.dumps({"origin": origin}).encode() + b"\n"
        if self._file.read(len(header)) != header:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(header)
        self._end = len(header)
        self._taking = True

    def take(self, batch: Batch) -> list[np.ndarray] | None:
        """The results of the next batch, as leaves, where the file has them; None from then on."""
        if self._taking:
            found = self._read(batch)
            if found is not None:
                return found
            self._finish_taking()
        return None

    def add(self, batch: Batch, leaves: Sequence[np.ndarray]) -> None:
        """Appends the results of a batch; on the disk after `SYNC_SECONDS` at most, if more come."""
        if self._taking:
            self._finish_taking()
        described = json.dumps([[leaf.dtype.str, leaf.shape] for leaf in leaves]).encode()
        content = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves)
        self._file.write(_LENGTH.pack(len(described)) + described + content + _digest(batch, described, content))
        now = self._clock()
        if now - self._flushed >= FLUSH_SECONDS:
            self._file.flush()
            self._flushed = now
        if now - self._synced >= SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = now

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _finish_taking(self) -> None:
        self._taking = False
        self._file.seek(self._end)
        self._file.truncate()

    def _read(self, batch: Batch) -> list[np.ndarray] | None:
        """The next record; None where there is no whole one of this batch."""
        length = self._file.read(_LENGTH.size)
        if len(length) < _LENGTH.size:
            return None
        described = self._file.read(_LENGTH.unpack(length)[0])
        try:
            kinds = [(np.dtype(kind), tuple(shape)) for kind, shape in json.loads(described)]
            sizes = [kind.itemsize * int(np.prod(shape, dtype=np.int64)) for kind, shape in kinds]
        except (ValueError, TypeError):
            return None
        content = self._file.read(sum(sizes))
        if self._file.read(_DIGEST_BYTES) != _digest(batch, described, content):
            return None
        self._end = self._file.tell()
        ends = np.cumsum(sizes)
        parts = [content[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        return [np.frombuffer(part, kind).reshape(shape) for part, (kind, shape) in zip(parts, kinds, strict=True)]


class _LedPass:
    """The same where several processes compute the scores: the leader has the file, or None elsewhere."""

    def __init__(self, own: PartialPass | None) -> None:
        self._own, self._taking = own, True

    def take(self, batch: Batch) -> Sequence[np.ndarray] | None:
        """As `PartialPass.take`, for all processes."""
        if not self._taking:
            return None
        found = shared(lambda: None if self._own is None else self._own.take(batch))
        self._taking = found is not None
        return found

    def add(self, batch: Batch, leaves: Sequence[np.ndarray]) -> None:
        """As `PartialPass.add`, by the leader."""
        if self._own is not None:
            self._own.add(batch, leaves)


def _digest(batch: Batch, described: bytes, content: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for array in (batch.tokens, batch.prompt_lengths, batch.lengths, batch.index):
        digest.update(array.tobytes())
    digest.update(f"{batch.capacity} ".encode() + described + content)
    return digest.digest()
