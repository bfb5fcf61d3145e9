"""Where a report is written, and what must not be written over: a page or a figure that is somebody else's."""

from __future__ import annotations

from pathlib import Path

from star_jax.errors import ConfigError
from star_jax.runs.files import check_writable

PAGE, CURVE = "report.html", "learning_curve.png"
"""Names of the files in an output folder."""

_MARKS = (b'<meta name="generator" content="star_jax">', b"<h1>Which labels are worth buying?</h1>")
"""What pages of this release and of former ones have at their beginning."""

_BEGINNING = 1 << 16
"""Bytes that are searched for a mark."""


def check_places(directory: Path) -> None:
    """Refuses an output folder where the report's files cannot be written, or are files of somebody else.

    Raises:
      ConfigError: naming the file.
    """
    page, curve = directory / PAGE, directory / CURVE
    own_page = page.is_file() and any(mark in _beginning(page) for mark in _MARKS)
    if page.exists() and not own_page:
        raise ConfigError(_foreign(page))
    if curve.exists() and not own_page and not _is_plain_figure(curve):
        raise ConfigError(_foreign(curve))
    if directory.is_dir():
        for file in (page, curve):
            try:
                check_writable(file)
            except OSError as error:
                raise ConfigError(f"{file} cannot be written ({error.strerror}); make it writable") from None


def _foreign(file: Path) -> str:
    return f"{file} is there and no report of star_jax, and would be lost; move it away, or name another folder"


def _is_plain_figure(file: Path) -> bool:
    """Whether an image may be one that a report wrote before its page was: those say nothing of who made them."""
    content = _beginning(file)
    return content.startswith(b"\x89PNG") and b"tEXt" not in content and b"iTXt" not in content


def _beginning(file: Path) -> bytes:
    if not file.is_file():
        return b""
    with file.open("rb") as content:
        return content.read(_BEGINNING)
