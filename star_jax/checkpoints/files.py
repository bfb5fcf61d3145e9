"""The files of a model or adapter folder: which there are, their hash, and JSON objects in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from star_jax.documents import UnreadableError, parse_json_object, read_text
from star_jax.errors import ConfigError

HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What is fetched from the hub: weights, configuration and tokenizer. No pickled weights, no code."""


INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"

ADAPTER_FILE = "adapter_config.json"
"""What makes a folder a PEFT adapter."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model or adapter folder that Transformers reads, without a second copy beside them.

    That is the single file where there is one, even beside an index; else those that the index names; else all.

    Raises:
      ConfigError: there are none, pickled weights are named where there are some; or one that the index names is not
        there.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _indexed_files(folder)
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


def _indexed_files(folder: Path) -> list[Path]:
    named = read_object(folder / INDEX_FILE).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ConfigError(f"{folder / INDEX_FILE}: weight_map is no object of tensors and files; fetch it again")
    files = sorted(set(named.values()))
    if any(Path(name).name != name for name in files):
        raise ConfigError(f"{folder / INDEX_FILE} names a file outside the folder; fetch it again")
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder}: {INDEX_FILE} names {missing[0]}, which is not there; fetch it again")
    return [folder / name for name in files]


def require_model(folder: Path) -> None:
    """Refuses a folder that is an adapter, or a model with an adapter in it.

    Raises:
      ConfigError: it is one of these; the message says what to set.
    """
    if not (folder / ADAPTER_FILE).is_file():
        return
    if (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds a model and an adapter ({ADAPTER_FILE}), which Transformers would load on top of it; move "
            "the adapter's files to a folder of their own and name that in model.adapter, or delete them"
        )
    base = read_object(folder / ADAPTER_FILE).get("base_model_name_or_path")
    of = f" of the model {base}" if isinstance(base, str) and base else ""
    raise ConfigError(
        f"{folder} is an adapter{of}, not a model; name its base in model.path and this folder in model.adapter"
    )


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
