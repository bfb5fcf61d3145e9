"""Text that others wrote: UTF-8, of bounded size, and why a file is not the document that it should be."""

from __future__ import annotations

import os
from pathlib import Path

MOST_BYTES = 1 << 28
"""Largest file that is read as one document: 256 MiB, more than any configuration, index or page of figures has."""

MOST_LEVELS = 64
"""Deepest nesting of lists and objects. Documents that people and programs write have less than ten levels."""

MOST_DIGITS = 4000
"""Digits of a number; Python itself refuses to read one that has more than 4300."""


class UnreadableError(ValueError):
    """Why a file is not the document that it should be.

    Attributes:
      problem: what is wrong, to stand behind the file's name: `is not UTF-8 text`.
      line: where, counted from 1; None where that means nothing.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line

    def at(self, path: object) -> str:
        """`path` and what is wrong with it, in one sentence."""
        return f"{path}{'' if self.line is None else f', line {self.line}'} {self.problem}"


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
      UnreadableError: the file cannot be read, is larger than `most_bytes`, is of another encoding, or holds no text.
    """
    try:
        # Through the system's own call, since a link that leads nowhere must not count as a file that is not there.
        with open(path, "rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # a name with a null in it
        raise UnreadableError(f"cannot be read ({error})") from error
    if len(content) > most_bytes:
        raise UnreadableError(f"is larger than {most_bytes:,} bytes, which no such file is")
    return decoded(content)


def decoded(content: bytes) -> str:
    """The text in UTF-8 bytes, without a byte order mark.

    Raises:
      UnreadableError: the bytes are of another encoding, or of no text.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UnreadableError("is UTF-16 and not UTF-8 text; save it in that encoding")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableError("is not UTF-8 text; save it in that encoding", line) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UnreadableError("holds a null character, which no text has", line)
    return text


def exists(path: Path) -> bool:
    """Whether there is something of that name, be it a link that leads nowhere: nobody may take it for nothing."""
    return os.path.lexists(path)
