"""Model folders: where they are, what must be in them, and their tokenizer."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from star_jax.errors import ConfigError

EMBEDDED = "embedded:"
"""Beginning of the names of models that ship with the package."""

HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""What is fetched from the hub: weights, configuration and tokenizer. No pickled weights, no code."""


NOT_FETCHED = ("consolidated*.safetensors", "original/*")
"""Of those, the weights that some models bring a second time, in the format of their makers."""


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, found once: everything that is read of it goes through here.

    Attributes:
      name: what the user calls it: a path, a hub name, or `embedded:NAME`.
      path: where it is.
    """

    name: str
    path: Path

    @cached_property
    def fingerprint(self) -> str:
        """Hash of its files, as `folder_fingerprint`."""
        return folder_fingerprint(self.path)

    def tokenizer(self) -> Any:
        """Its tokenizer; errors as those of `load_tokenizer`."""
        return load_tokenizer(self.path)

    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end what it writes; errors as those of `end_tokens`."""
        return end_tokens(self.path)


def open_folder(name: str) -> ModelFolder:
    """The folder of a model; errors as those of `resolve_folder`."""
    return ModelFolder(name, resolve_folder(name))


def resolve_folder(path: str | Path) -> Path:
    """Folder of a model: a local one, one that ships with the package, or a hub name downloaded. A `Path` is kept.

    With `HF_HUB_OFFLINE=1` a hub name is looked up among what has been fetched before.

    Raises:
      ConfigError: it is none of these.
    """
    if isinstance(path, Path):
        return path
    if path.startswith(EMBEDDED):
        folder = Path(__file__).parent.parent / "benchmarks" / path.removeprefix(EMBEDDED) / "model"
        if not folder.is_dir():
            raise ConfigError(f"the model is {path!r}; no model of that name ships with the package")
        return folder
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ConfigError(f"the model is {path!r}; there is no such folder, and it is not a hub name OWNER/MODEL")
    # Imported here: the hub client is slow to load and local folders do not need it.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=list(HUB_FILES), ignore_patterns=list(NOT_FETCHED)))
    except Exception as error:  # The client raises a dozen unrelated classes; the user needs one sentence.
        raise ConfigError(
            f"the model is {path!r}; there is no such folder, and the hub did not give it: {on_one_line(error)}"
        ) from error


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
      ConfigError: it does not hold one.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} holds no JSON object")
    return raw


def end_tokens(path: str | Path) -> tuple[int, ...]:
    """Tokens that end what a model writes, by its generation_config.json or else its config.json; () for none.

    Models that were trained to chat have several: the end of a text and the end of a turn.

    Raises:
      ConfigError: there is no such folder, or one of the files names no tokens.
    """
    folder = resolve_folder(path)
    for name in ("generation_config.json", "config.json"):
        value = read_object(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if value is not None:
            tokens = value if isinstance(value, list) else [value]
            if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
                raise ConfigError(f"{folder / name}: eos_token_id is {value!r}; it must be a token's number or several")
            return tuple(sorted(set(tokens)))
    return ()


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder, through transformers.

    Raises:
      ConfigError: there is none, it cannot be read or comes as code, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    folder = resolve_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # What is wrong in a file shows in whichever way the code that met it happened to fail.
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{folder}: the tokenizer comes as code of its own, which is not run because it could do anything on "
                "this machine; choose a model whose tokenizer transformers has"
            ) from error
        raise ConfigError(
            f"{folder} has no tokenizer that transformers can read ({type(error).__name__}: {on_one_line(error)})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{folder}: the tokenizer has no end-of-sequence token, so a response could not end")
    return tokenizer


def on_one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
