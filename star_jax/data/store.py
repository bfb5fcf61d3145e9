"""Tokens of many prompts in two arrays: in memory, or in a file that is mapped into it.

The file is named after a hash of all that its content depends on, and carries a hash of the content; one that is cut,
damaged or of something else is made anew.

Shapes: `N` prompts, `M` tokens of all of them together.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np

from star_jax import __version__

FOLDER = "tokens"
"""Name of the folder in OUTPUT_DIR where the tokens of large pools are."""

LARGE = 50_000
"""Prompts from which on their tokens go to a file, where there is a place for one."""

ABANDONED_SECONDS = 3600.0
"""Since when nobody has written to a file that is being made, so that whoever made it must have been killed."""

_HEADER_BYTES = 256
_PIECE = 1 << 22


class TokenStore(Sequence[np.ndarray]):
    """Tokens of prompts.

    Args:
      tokens: `M` int32, those of one prompt behind those of another.
      ends: `N + 1` int64, where each begins in them, and their number.
    """

    def __init__(self, tokens: np.ndarray, ends: np.ndarray) -> None:
        self._tokens, self._ends = tokens, ends

    @classmethod
    def of(cls, prompts: Iterable[np.ndarray]) -> TokenStore:
        """Holds prompts in memory."""
        tokens, ends = array("i"), array("q", [0])
        for prompt in prompts:
            tokens.frombytes(np.ascontiguousarray(prompt, np.int32).tobytes())
            ends.append(len(tokens))
        return cls(np.frombuffer(tokens, np.int32), np.frombuffer(ends, np.int64))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, place: slice) -> list[np.ndarray]: ...

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        return self._tokens[self._ends[number] : self._ends[number + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """`N` int64, tokens of each prompt."""
        return np.diff(self._ends)

    def without_empty(self) -> TokenStore:
        """The same without prompts of no tokens, on the same memory."""
        return TokenStore(self._tokens, np.concatenate([self._ends[:1], self._ends[1:][self.lengths > 0]]))


class TokenPlace(NamedTuple):
    """Where tokens may be kept.

    Attributes:
      path: beginning of the file's name.
      origin: the tokenizer that makes them, and its version.
    """

    path: Path
    origin: str

    def file(self, way: str, texts: Iterable[str]) -> Path:
        """The file for the tokens of these texts, made in a way that the caller names."""
        digest = hashlib.sha256(f"{self.origin} {way} ".encode())
        for text in texts:
            content = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d " % len(content) + content)
        return self.path.with_name(f"{self.path.name}{digest.hexdigest()[:32]}.tokens")


def tokenizer_origin(fingerprint: str) -> str:
    """`TokenPlace.origin` for the tokenizer of a model folder with that fingerprint, as the code of today reads it."""
    code = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        code.update(file.name.encode() + file.read_bytes())
    versions = [__version__, *map(version, ("tokenizers", "transformers"))]
    return " ".join([fingerprint, code.hexdigest(), *versions])


def stored(file: Path, facts: Callable[[], dict[str, Any]], prompts: Iterable[np.ndarray]) -> TokenStore:
    """Writes prompts into a file as they are made, and maps it.

    Args:
      file: that appears whole or not at all.
      facts: what is known once all are made, for `read` to give back; plain JSON of less than 150 bytes.
      prompts: tokens of each.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(file)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as content:
            content.write(b" " * _HEADER_BYTES)
            ends = array("q", [0])
            for prompt in prompts:
                content.write(np.ascontiguousarray(prompt, np.int32).tobytes())
                ends.append(ends[-1] + len(prompt))
            content.write(b"\0" * (-content.tell() % 8) + ends.tobytes())
            header = {"prompts": len(ends) - 1, "tokens": ends[-1], "facts": facts()}
            header["hash"] = _hash(header, content)
            content.seek(0)
            content.write(json.dumps(header).encode().ljust(_HEADER_BYTES - 1) + b"\n")
            content.flush()
            os.fsync(content.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return _mapped(file, header)


def _remove_abandoned(file: Path) -> None:
    """Removes what processes that were killed have left of a file; others may be writing it at this moment."""
    for left in file.parent.glob(f"{glob.escape(file.name)}.*.tmp"):
        with suppress(OSError):  # another process was quicker
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                left.unlink()


def read(file: Path) -> tuple[TokenStore, dict[str, Any]] | None:
    """What `stored` wrote, with the facts; None where there is no such file, or it is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError), file.open("rb") as content:
        header = json.loads(content.read(_HEADER_BYTES))
        if header.pop("hash") == _hash(header, content):
            return _mapped(file, header), dict(header["facts"])
    return None


def _hash(header: dict[str, Any], content: BinaryIO) -> str:
    """Hash of the header and of what is behind it, read piece by piece."""
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    content.seek(_HEADER_BYTES)
    while piece := content.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _mapped(file: Path, header: dict[str, Any]) -> TokenStore:
    prompts, tokens = int(header["prompts"]), int(header["tokens"])
    behind = -(-(_HEADER_BYTES + 4 * tokens) // 8) * 8
    ends = np.fromfile(file, np.int64, prompts + 1, offset=behind)
    if not tokens:
        return TokenStore(np.zeros(0, np.int32), ends)
    return TokenStore(np.asarray(np.memmap(file, np.int32, "r", offset=_HEADER_BYTES, shape=(tokens,))), ends)
