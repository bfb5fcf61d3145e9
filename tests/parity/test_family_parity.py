"""Every family against Transformers: fresh random configs and weights, logits of padded batches, greedy tokens.

Logits are those of whole rows and of projections by themselves; tokens are written as a run writes them, by fused
projections, from prompts that are read in a line.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
import pytest
from tiny_models import (
    FAMILIES,
    FAMILY_ROW,
    LONGEST_PROMPT,
    TinyModel,
    greedy,
    randomise,
    torch_logits,
    torch_model,
)

from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.huggingface import load_model
from star_jax.inference.generation import PromptBatch, Stop, generate
from star_jax.models.architecture import TransformerConfig
from star_jax.models.merged import merge_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.parity, pytest.mark.parametrize("name", FAMILIES)]

PROMPTS, NEW_TOKENS = 8, 64
TOLERANCE = 1e-4
NEAR_TIE = 1e-4
"""Two best logits closer than this may be ordered differently by another order of additions."""
PLAINLY = 0.1
"""A feature shows when taking it away moves a logit by so much, a thousand times the tolerance."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Matrices this small are multiplied before a second thread has woken up."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(name: str, rng: np.random.Generator) -> TinyModel:
    return FAMILIES[name](rng)


@pytest.fixture
def theirs(tiny: TinyModel, seed: int) -> PreTrainedModel:
    model = torch_model(tiny.config)
    randomise(model, seed)
    return model


def draw_prompts(tiny: TinyModel, rng: np.random.Generator) -> list[np.ndarray]:
    """Prompts of different lengths, the shortest and the longest among them."""
    between = np.arange(tiny.shortest_prompt + 1, LONGEST_PROMPT)
    lengths = [tiny.shortest_prompt, LONGEST_PROMPT, *rng.choice(between, PROMPTS - 2, replace=False)]
    return [rng.integers(0, tiny.vocabulary, length).astype(np.int32) for length in lengths]


def padded(prompts: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded rows and their lengths; the padding is random tokens, which nothing may read."""
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
    tokens = rng.integers(0, max(map(max, prompts)), (len(prompts), lengths.max())).astype(np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens, lengths


def real_logits(model: PreTrainedModel, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return torch_logits(model, tokens, lengths).numpy()[np.arange(tokens.shape[1]) < lengths[:, None]]


def test_family(
    name: str,
    tiny: TinyModel,
    theirs: PreTrainedModel,
    forward: Callable[..., jax.Array],
    rng: np.random.Generator,
    seed: int,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    theirs.save_pretrained(tmp_path)
    ours = load_model(str(tmp_path), longest=tiny.longest)
    prompts, want = [], []
    for prompt in draw_prompts(tiny, rng):
        response, lead = greedy(theirs, prompt, NEW_TOKENS)
        while lead <= NEAR_TIE:
            print(f"a prompt of {len(prompt)} tokens is drawn again: two best tokens are {lead:.1e} apart")
            prompt = rng.integers(0, tiny.vocabulary, len(prompt)).astype(np.int32)
            response, lead = greedy(theirs, prompt, NEW_TOKENS)
        prompts.append(prompt)
        want.append(response)
    tokens, lengths = padded(prompts, rng)

    expected = real_logits(theirs, tokens, lengths)
    got = np.asarray(forward(ours, None, tokens, lengths))[np.arange(tokens.shape[1]) < lengths[:, None]]
    error = np.abs(got - expected).max()
    run = jax.jit(partial(generate, stop=Stop(NEW_TOKENS, -1), capacity=int(lengths.sum())))
    responses, counts, _ = run(*merge_adapter(ours, None), PromptBatch(tokens, lengths))
    equal = [np.array_equal(row, response) for row, response in zip(responses, want, strict=True)]
    cells = (name, f"{error:.1e}", f"{sum(equal)}/{PROMPTS}", f"--seed {seed}")
    record_property(FAMILY_ROW, (list(FAMILIES).index(name), *cells))

    assert expected.std() > 0.5
    assert len(np.unique(want)) > NEW_TOKENS // 4
    assert error <= TOLERANCE
    assert counts.tolist() == [NEW_TOKENS] * PROMPTS
    assert all(equal), "first different token of each prompt: " + ", ".join(
        "none" if same else str(np.flatnonzero(np.asarray(row) != response)[0])
        for same, row, response in zip(equal, responses, want, strict=True)
    )


def test_features_show(tiny: TinyModel, theirs: PreTrainedModel, rng: np.random.Generator) -> None:
    """Transformers' own logits change when a feature is taken away, so that leaving it out here would be noticed."""
    rows = padded(draw_prompts(tiny, rng), rng)
    expected = real_logits(theirs, *rows)
    for feature, fields in tiny.variations.items():
        without = torch_model(tiny.config | fields)
        without.load_state_dict(theirs.state_dict())
        assert np.abs(real_logits(without, *rows) - expected).max() > PLAINLY, feature


def by_layer(config: TransformerConfig) -> TransformerConfig:
    """The same with the rotary positions of each layer, whatever the order in which the file lists their kinds."""
    if not config.layer_ropes:
        return config
    return dataclasses.replace(config, ropes=tuple(config.ropes[kind] for kind in config.layer_ropes), layer_ropes=())


def test_layouts_of_config(tiny: TinyModel, theirs: PreTrainedModel, tmp_path: Path) -> None:
    """What the hub publishes, and what today's Transformers writes for the same model."""
    theirs.config.save_pretrained(tmp_path / "today")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(tiny.config), encoding="utf-8")
    published, today = (by_layer(read_config(tmp_path / name, "float32", tiny.longest)) for name in ("hub", "today"))
    assert published == today
