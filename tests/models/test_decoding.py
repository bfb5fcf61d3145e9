"""Decoding with a cache against passes over whole rows, which `test_transformer` compares with plain numpy."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES

from star_jax.models import transformer
from star_jax.models.architecture import Architecture, TransformerConfig
from star_jax.models.decoding import KVCache, decode_step, prefill, unstacked
from star_jax.models.lm_head import logits, output_head
from star_jax.models.lora import Adapter
from star_jax.models.merged import merge_adapter
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.ops.quantization import quantize

Forward = Callable[..., jax.Array]
MakeModel = Callable[[TransformerConfig], LanguageModel]
MakeAdapter = Callable[..., Adapter]

WIDTH, NEW, SLOTS = 6, 5, 13
"""Longest prompt, tokens behind it, and slots of the cache: two more than are needed."""


class Rows(NamedTuple):
    """Prompts of different lengths, the longest and the shortest among them, each with `NEW` tokens behind it."""

    tokens: np.ndarray
    lengths: np.ndarray


@pytest.fixture
def rows(rng: np.random.Generator, tiny_config: TransformerConfig) -> Rows:
    lengths = rng.permutation(np.asarray([WIDTH, 1, *rng.integers(2, WIDTH, 2)], np.int32))
    return Rows(rng.integers(0, tiny_config.vocab_size, (4, WIDTH + NEW)).astype(np.int32), lengths)


@partial(jax.jit, static_argnames="computed")
def _decoded(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: jax.Array,
    lengths: jax.Array,
    behind: jax.Array,
    positions: jax.Array,
    computed: int | None = None,
) -> tuple[jax.Array, KVCache]:
    layers = unstacked(model, adapter)
    first, cache = prefill(model, adapter, prompts, lengths, SLOTS, computed)

    def advance(cache: KVCache, column: tuple[jax.Array, jax.Array]) -> tuple[KVCache, jax.Array]:
        hidden, cache = decode_step(model, layers, *column, cache)
        return cache, hidden

    cache, rest = jax.lax.scan(advance, cache, (behind.T, positions.T))
    return logits(jnp.concatenate([first[None], rest]).swapaxes(0, 1), output_head(model)), cache


def decoded(
    model: LanguageModel,
    adapter: Adapter | None,
    rows: Rows,
    *,
    padding: int = 0,
    ended: tuple[int, int] | None = None,
    computed: int | None = None,
) -> tuple[np.ndarray, KVCache]:
    """Logits `B×(1 + NEW)×V` after the prompt and after each token behind it, and the cache at the end.

    The token at `ended`, its row and number behind the prompt, is read at no position. The prompts are read in a line
    of `computed` slots, or with their padding.
    """
    prompts = np.where(np.arange(WIDTH) < rows.lengths[:, None], rows.tokens[:, :WIDTH], padding)
    positions = rows.lengths[:, None] + np.arange(NEW, dtype=np.int32)
    behind = np.take_along_axis(rows.tokens, positions, axis=1)
    if ended is not None:
        positions[ended] = -1
    got, cache = _decoded(model, adapter, prompts, rows.lengths, behind, positions, computed)
    return np.asarray(got), cache


def at_once(whole: jax.Array, rows: Rows) -> np.ndarray:
    """The same places of the logits `B×T×V` of whole rows."""
    places = rows.lengths[:, None] - 1 + np.arange(1 + NEW)
    return np.take_along_axis(np.asarray(whole), places[..., None], axis=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_by_token_equals_one_pass(
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tiny_config: TransformerConfig,
    forward: Forward,
    rows: Rows,
    family: str,
) -> None:
    """Prompts of different lengths leave gaps in the cache, which the positions know about, and so do windows."""
    model = make_model(dataclasses.replace(tiny_config, **FAMILIES[family]))
    adapter = make_adapter(model.config)
    got, cache = decoded(model, adapter, rows)
    want = at_once(forward(model, adapter, *rows), rows)
    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert int(cache.slots.used) == WIDTH + NEW
    held = [sorted(place for place in row if place >= 0) for row in cache.slots.positions.tolist()]
    assert held == [list(range(length + NEW)) for length in rows.lengths]


@pytest.mark.parametrize("kind", ["base", "int8", "nf4", "folded", "one head"])
def test_other_kinds_of_weights(
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tiny_config: TransformerConfig,
    forward: Forward,
    rows: Rows,
    kind: str,
) -> None:
    """No adapter, quantised kernels, a model that holds its adapter, and as many key-value heads as query heads."""
    heads = {"num_key_value_heads": tiny_config.num_attention_heads} if kind == "one head" else {}
    model = make_model(dataclasses.replace(tiny_config, **heads))
    adapter = None if kind == "base" else make_adapter(model.config)
    if kind in ("int8", "nf4"):
        layers = {
            name: layer | ({"kernel": quantize(layer["kernel"], kind)} if "kernel" in layer else {})
            for name, layer in model.params["layers"].items()
        }
        model = model.replace(params={**model.params, "layers": layers})
    want = at_once(forward(model, adapter, *rows), rows)
    got, _ = decoded(*(merge_adapter(model, adapter) if kind == "folded" else (model, adapter)), rows)
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("heads", [2, 4])
def test_bfloat16(
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tiny_config: TransformerConfig,
    forward: Forward,
    rows: Rows,
    heads,
) -> None:
    """As close to float32 as whole rows in bfloat16 are; one query head a group goes its own way."""
    wide = make_model(dataclasses.replace(tiny_config, num_key_value_heads=heads))
    config = dataclasses.replace(wide.config, dtype="bfloat16")
    narrow = LanguageModel(Decoder(config), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide.params))
    adapter = make_adapter(config)
    got, cache = decoded(narrow, adapter, rows)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.layers)} == {jnp.dtype(jnp.bfloat16)}
    want, whole = (at_once(forward(model, adapter, *rows), rows) for model in (wide, narrow))
    errors = [np.sqrt(np.mean((found - want) ** 2)) for found in (got, whole)]
    assert 0 < errors[1] < 0.1 * want.std()
    assert errors[0] < 1.5 * errors[1]


def test_what_pads_a_prompt_is_not_seen(tiny_model: LanguageModel, make_adapter: MakeAdapter, rows: Rows) -> None:
    adapter = make_adapter(tiny_model.config)
    plain, _ = decoded(tiny_model, adapter, rows)
    np.testing.assert_array_equal(decoded(tiny_model, adapter, rows, padding=7)[0], plain)


@pytest.mark.parametrize("one_by_one", [False, True])
def test_prompts_may_be_read_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: LanguageModel,
    make_adapter: MakeAdapter,
    rows: Rows,
    one_by_one: bool,
) -> None:
    """One of them may be none at all: a row that only fills the batch up."""
    monkeypatch.setattr(transformer, "SHORT_ROW", 2 if one_by_one else WIDTH)
    adapter, computed = make_adapter(tiny_model.config), int(rows.lengths.sum()) + 1
    plain, _ = decoded(tiny_model, adapter, rows)
    got, _ = decoded(tiny_model, adapter, rows, computed=computed + one_by_one)  # a program of its own
    np.testing.assert_allclose(got, plain, atol=1e-4)
    empty = np.arange(4) == 2
    some = rows._replace(lengths=np.where(empty, 0, rows.lengths))
    got, _ = decoded(tiny_model, adapter, some, computed=computed + one_by_one)
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[~empty], plain[~empty], atol=1e-4)


def test_what_is_read_at_no_position_leaves_the_cache_as_it_was(
    rng: np.random.Generator, tiny_model: LanguageModel, make_adapter: MakeAdapter, rows: Rows
) -> None:
    """A row that has ended goes on reading tokens, at position -1: those after it see what they saw before."""
    adapter, row, number = make_adapter(tiny_model.config), 1, int(rng.integers(NEW - 1))
    tokens, place = rows.tokens.copy(), int(rows.lengths[row]) + number
    tokens[row, place] = (tokens[row, place] + 1) % tiny_model.config.vocab_size
    other = rows._replace(tokens=tokens)
    plain, (got, cache) = decoded(tiny_model, adapter, rows)[0], decoded(tiny_model, adapter, rows, ended=(row, number))
    assert np.isfinite(got).all()
    assert place not in cache.slots.positions[row]
    before = np.ones(plain.shape[:2], bool)
    before[row, number + 1 :] = False
    np.testing.assert_array_equal(got[before], plain[before])

    after = slice(number + 2, None)
    unseen, seen = decoded(tiny_model, adapter, other, ended=(row, number))[0], decoded(tiny_model, adapter, other)[0]
    np.testing.assert_array_equal(unseen[row, after], got[row, after])
    assert (np.abs(seen - plain)[row, after].max(axis=1) > 1e-4).all()


def test_layers_are_the_slices_of_the_stack(
    make_model: MakeModel, make_adapter: MakeAdapter, tiny_config: TransformerConfig
) -> None:
    model = make_model(dataclasses.replace(tiny_config, architecture=Architecture(biases=("q_proj",))))
    adapter = make_adapter(tiny_config, targets=("v_proj",))
    for chosen in (None, adapter):
        layers = unstacked(model, chosen)
        assert len(layers) == tiny_config.num_hidden_layers
        for number, layer in enumerate(layers):
            for name, parts in model.params["layers"].items():
                for part, leaf in parts.items():
                    np.testing.assert_array_equal(layer["params"][name][part], leaf[number])
            assert ("lora" in layer) is (chosen is not None)
        if chosen is not None:
            np.testing.assert_array_equal(layers[1]["lora"]["v_proj"]["a"], adapter.weights["layers"]["v_proj"]["a"][1])
