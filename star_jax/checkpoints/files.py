"""The files of a model or adapter folder: which there are, their hash, and JSON objects in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star_jax.documents import UnreadableError, parse_json_object, read_text
from star_jax.errors import ConfigError

HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What is fetched from the hub: weights, configuration and tokenizer. No pickled weights, no code."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model or adapter folder, without a second copy of the weights beside them.

    Raises:
      ConfigError: there are none; pickled weights are named where there are some.
    """
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return [file for file in files if not file.name.startswith("consolidated")] or files
    pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in folder.glob(kind))
    found = f"; it has {pickled[0]}, and pickled weights are not read because" if pickled else ", and pickled weights"
    tail = (
        " reading them can run any code: convert them with save_pretrained(..., safe_serialization=True)"
        if pickled
        else " would not be read because they can run code"
    )
    raise ConfigError(f"{folder} has no *.safetensors file{found}{tail}")


def folder_fingerprint(folder: Path) -> str:
    """Hash of the files of `HUB_FILES` in a model or adapter folder; of large ones, their first and last MiB."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in HUB_FILES for file in folder.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(1 << 20))
            if size > 1 << 20:
                content.seek(-(1 << 20), os.SEEK_END)
                digest.update(content.read())
    return digest.hexdigest()


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`.

    Raises:
      ConfigError: it cannot be read, or does not hold one.
    """
    try:
        # Some programs write NaN and infinities, which is no reason to refuse a field that nobody reads.
        return parse_json_object(read_text(file), finite=False)
    except UnreadableError as error:
        raise ConfigError(f"{error.at(file)}; fetch the file again") from None


def on_one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def without_advice() -> Iterator[None]:
    """Transformers may be imported inside: it says at every start that PyTorch is missing, which is as it should be."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
