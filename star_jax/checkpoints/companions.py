"""The files beside a model's weights that say how text becomes tokens: tokenizer and chat templates.

A model and its adapter may both have them. Those of the adapter are what it was trained with, so they go first.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from star_jax.checkpoints.files import read_object

VOCABULARY = ("tokenizer.json", "*.model", "tekken.json", "vocab.json", "vocab.txt", "merges.txt")
"""Files of which a tokenizer has one or several; without any, there is none."""

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
CHAT = ("*.jinja", "additional_chat_templates/*.jinja", "chat_template.json")

Companions = dict[str, Path]
"""Name inside the folder -> where the file is."""


def found(folder: Path, patterns: tuple[str, ...]) -> Companions:
    """The files of a folder that some patterns name."""
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in files}


def tokenizer_files(folder: Path) -> Companions:
    """Tokenizer and chat templates of a folder; only the templates where it has no vocabulary."""
    vocabulary = found(folder, VOCABULARY)
    return (vocabulary | found(folder, SETTINGS) if vocabulary else {}) | found(folder, CHAT)


def together(base: Path, adapter: Path) -> tuple[Companions, str]:
    """What goes with a model and an adapter that are merged.

    Returns:
      The files, and whose tokenizer and chat template they are, for people.
    """
    ours, theirs = tokenizer_files(adapter), tokenizer_files(base)
    if not ours:
        return theirs, "the base model's tokenizer" if found(base, VOCABULARY) else "no tokenizer, for neither has one"
    if not found(adapter, VOCABULARY):
        kept = {name: file for name, file in theirs.items() if name not in found(base, CHAT)}
        return kept | ours, "the base model's tokenizer with the adapter's chat template"
    if _has_template(adapter):
        return ours, "the adapter's tokenizer and chat template"
    return found(base, CHAT) | ours, "the adapter's tokenizer"


def copy_companions(files: Companions, folder: Path) -> None:
    """Copies files into a folder that exists, under their names."""
    for name, source in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / name)


def _has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    return bool(found(folder, CHAT)) or (settings.is_file() and bool(read_object(settings).get("chat_template")))
