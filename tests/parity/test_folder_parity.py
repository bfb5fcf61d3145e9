"""Folders that contradict themselves: what Transformers makes of them is what is made of them here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import llama_32, randomise, torch_logits, torch_model

from star_jax.checkpoints.files import INDEX_FILE, SINGLE_FILE
from star_jax.checkpoints.huggingface import load_model

pytestmark = pytest.mark.parity

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def other_head(folder: Path, rng: np.random.Generator) -> None:
    """A tied model whose file has a head of its own."""
    tensors = load_file(folder / SINGLE_FILE)
    head = tensors[EMBEDDING] + np.float32(rng.normal(size=tensors[EMBEDDING].shape))
    save_file(tensors | {HEAD: head}, folder / SINGLE_FILE, {"format": "pt"})


def only_the_head(folder: Path, rng: np.random.Generator) -> None:
    """A tied model whose file has the head and no embedding."""
    tensors = load_file(folder / SINGLE_FILE)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    save_file(tensors, folder / SINGLE_FILE, {"format": "pt"})


def an_older_index(folder: Path, rng: np.random.Generator) -> None:
    """Shards of other weights, and their index, beside the single file."""
    tensors = {name: 2 * tensor for name, tensor in load_file(folder / SINGLE_FILE).items()}
    save_file(tensors, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / INDEX_FILE).write_text(json.dumps(index))


def leftovers(folder: Path, rng: np.random.Generator) -> None:
    """Fields that nothing reads."""
    raw = json.loads((folder / "config.json").read_text())
    left = {"unk_token_id": 0, "max_length": 20, "temperature": 0.1, "neftune_noise_alpha": 5, "is_causal": True}
    (folder / "config.json").write_text(json.dumps(raw | left))


@pytest.mark.parametrize("change", [other_head, only_the_head, an_older_index, leftovers])
def test_a_folder_is_read_as_transformers_reads_it(
    change: Callable[[Path, np.random.Generator], None],
    forward: Callable[..., jax.Array],
    rng: np.random.Generator,
    seed: int,
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    tiny = llama_32(rng)
    before = torch_model(tiny.config)
    randomise(before, seed)
    before.save_pretrained(tmp_path)
    change(tmp_path, rng)
    tokens, lengths = rng.integers(0, tiny.vocabulary, (2, 20)), np.asarray([20, 20])
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    expected = torch_logits(theirs.eval().requires_grad_(False), tokens, lengths).numpy()
    got = forward(load_model(str(tmp_path)), None, np.int32(tokens), np.int32(lengths))
    np.testing.assert_allclose(got, expected, atol=1e-4)
    # A head of its own shows; what the others change does not.
    moved = np.abs(expected - torch_logits(before, tokens, lengths).numpy()).max()
    assert bool(moved > 0.1) == (change is other_head)
