"""Model folders: where they are, what must be in them, and their tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from star_jax.checkpoints.config_limits import check_config_file
from star_jax.checkpoints.files import HUB_FILES, on_one_line, read_object, require_model, without_advice
from star_jax.checkpoints.fingerprints import folder_fingerprint
from star_jax.errors import ConfigError

EMBEDDED = "embedded:"
"""Beginning of the names of models that ship with the package."""

NOT_FETCHED = ("consolidated*.safetensors", "original/*")
"""Of those, the weights that some models bring a second time, in the format of their makers."""


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, opened once: what is read of it besides the weights.

    Attributes:
      name: what the user calls it: a path, a hub name, or `embedded:NAME`.
      path: where it is.
      tokenizer: of transformers.
      end_ids: the tokens that end what the model writes.
      fingerprint: hash of its files.
    """

    name: str
    path: Path
    tokenizer: Any = field(repr=False)
    end_ids: tuple[int, ...] = field(repr=False)
    fingerprint: str = field(repr=False)


def open_folder(name: str) -> ModelFolder:
    """Opens the folder of a model.

    Raises:
      ConfigError: there is no such folder, or its tokenizer or a file cannot be read.
    """
    path = resolve_folder(name)
    return ModelFolder(name, path, load_tokenizer(path), end_tokens(path), folder_fingerprint(path))


def resolve_folder(path: str | Path) -> Path:
    """Folder of a model: a local one, one that ships with the package, or a hub name downloaded. A `Path` is kept.

    With `HF_HUB_OFFLINE=1` a hub name is looked up among what has been fetched before.

    Raises:
      ConfigError: it is none of these, or it is an adapter.
    """
    folder = _found(path)
    require_model(folder)
    return folder


def _found(path: str | Path) -> Path:
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


def end_tokens(path: str | Path) -> tuple[int, ...]:
    """Tokens that end what a model writes, by its generation_config.json or else its config.json; () for none.

    Models that were trained to chat have several: the end of a text and the end of a turn.

    Raises:
      ConfigError: there is no such folder, or one of the files names what is no token of the vocabulary.
    """
    folder = resolve_folder(path)
    size = _vocabulary(folder)
    for name in ("generation_config.json", "config.json"):
        raw = read_object(folder / name) if (folder / name).is_file() else {}
        # Models that read images too say it of their language model.
        value = raw.get("eos_token_id", _text(raw).get("eos_token_id"))
        if value is not None:
            tokens = value if isinstance(value, list) else [value]
            if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
                raise ConfigError(f"{folder / name}: eos_token_id is {value!r}; it must be a token's number or several")
            if size is not None and not all(0 <= token < size for token in tokens):
                raise ConfigError(
                    f"{folder / name}: eos_token_id is {value!r}, and the vocabulary has tokens 0 to {size - 1} "
                    "(vocab_size); correct the one that is wrong"
                )
            return tuple(sorted(set(tokens)))
    return ()


def _text(raw: dict[str, Any]) -> dict[str, Any]:
    part = raw.get("text_config")
    return part if isinstance(part, dict) else {}


def _vocabulary(folder: Path) -> int | None:
    """Tokens of the vocabulary, where config.json says how many."""
    raw = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    size = raw.get("vocab_size", _text(raw).get("vocab_size"))
    return size if isinstance(size, int) and size > 0 else None


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder, through transformers.

    Raises:
      ConfigError: there is none, it cannot be read or comes as code, or it has no end-of-sequence token.
    """
    with without_advice():
        from transformers import AutoTokenizer

    folder = resolve_folder(path)
    check_config_file(folder)  # Transformers reads it too, and makes lists as long as it says
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # What is wrong in a file shows in whichever way the code that met it failed.
        # A panic of the tokenizer's library is no `Exception`.
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
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
