"""Files and folders that flags name to be written: refused, before any work, where something would be lost by it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from star_jax.errors import ConfigError
from star_jax.runs.files import check_writable

NOWHERE = "-"
"""What a flag says for stdout."""


def check_output_file(flag: str, out: Path, files: Mapping[str, str | None], folders: Mapping[str, str | None]) -> None:
    """Refuses a file to write that is one of those that are read, is in a folder that is read, or cannot be written.

    Args:
      flag: that names it, for messages.
      out: the file; it need not exist, and a link counts as what it leads to.
      files: flag -> path of a file that is read. What is no path of a file here, such as a hub name, is not looked at.
      folders: flag -> path of a folder that is read, likewise.

    Raises:
      ConfigError: naming both flags.
    """
    if not str(out).strip() or out == Path():
        raise ConfigError(f"{flag} is empty; name a file, or - for stdout")
    if out.is_dir():
        raise ConfigError(f"{flag} is {out}, which is a folder; name a file in it")
    if not out.parent.is_dir():
        raise ConfigError(f"{flag} is {out}; there is no folder {out.parent}, make it first")
    for read, name in files.items():
        if name and is_same(out, Path(name).expanduser()):
            raise ConfigError(f"{flag} is {out}, the file of {read}, which would be lost; name another file")
    for read, name in folders.items():
        if name and is_inside(out, Path(name).expanduser()):
            raise ConfigError(f"{flag} is {out}, inside the folder of {read}, which is only read; name another place")
    try:
        check_writable(out)
    except OSError as error:
        raise ConfigError(f"{flag} is {out}, which cannot be written ({error.strerror}); name another file") from None


def check_output_folder(flag: str, out: str, folders: Mapping[str, str | None]) -> None:
    """Refuses a folder to write that is empty text, or inside one that is read; arguments as in `check_output_file`.

    Raises:
      ConfigError: naming the flags.
    """
    if not out.strip():
        raise ConfigError(f"{flag} is empty; name a folder")
    for read, name in folders.items():
        if name and is_inside(Path(out).expanduser(), Path(name).expanduser()):
            raise ConfigError(f"{flag} is {out}, inside the folder of {read}, which is only read; name another place")


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths are of one file, by whichever links."""
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist, and a link may still be about to make it
        return os.path.realpath(one) == os.path.realpath(other) and (one.exists() or other.exists())


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder, or below it, by whichever links."""
    return folder.is_dir() and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
