"""Every part of the decoder against plain numpy, and what padding, cache and bfloat16 may not change."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PROJECTIONS
from scipy import special

from star_jax.models.families import BOTH_NORMS, POST_NORMS, PRE_NORMS
from star_jax.models.head import logits, output_head
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.rotary import Rope, unrotated
from star_jax.models.transformer import (
    Architecture,
    Decoder,
    KVCache,
    LanguageModel,
    RMSNorm,
    TransformerConfig,
    empty_cache,
    positions_of,
)

Rows = tuple[np.ndarray, np.ndarray]
Forward = Callable[..., jax.Array]
MakeModel = Callable[[TransformerConfig], LanguageModel]


def norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def capped(x: np.ndarray, softcap: float | None) -> np.ndarray:
    return x if softcap is None else softcap * np.tanh(x / softcap)


def activated(name: str, x: np.ndarray) -> np.ndarray:
    """By their definitions; the tanh form is that of Hendrycks & Gimpel 2016, arXiv 1606.08415."""
    if name == "silu":
        return x / (1 + np.exp(-x))
    if name == "gelu":
        return x * special.ndtr(x)
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


class ByHand:
    """A decoder in float64, one row without padding, a layer and a head at a time."""

    def __init__(self, model: LanguageModel) -> None:
        self.config = model.config
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """`T×V` of tokens `T`."""
        config, params = self.config, self.params
        x = params["embed_tokens"]["embedding"][tokens]
        if config.architecture.scaled_embedding:
            x = x * np.sqrt(config.hidden_size)
        for number in range(config.num_hidden_layers):
            layer = jax.tree.map(lambda leaf: leaf[number], params["layers"])  # noqa: B023
            added = self.attention(layer, number, self.normed(layer, "pre_attention_norm", x))
            x = x + self.normed(layer, "post_attention_norm", added)
            added = self.mlp(layer, self.normed(layer, "pre_mlp_norm", x))
            x = x + self.normed(layer, "post_mlp_norm", added)
        x = self.normed(params, "norm", x)
        head = params["embed_tokens"]["embedding"] if config.tie_word_embeddings else params["lm_head"]
        return capped(x @ head.T, config.logit_softcap)

    def normed(self, layer: dict[str, Any], name: str, x: np.ndarray) -> np.ndarray:
        if name not in layer:
            return x
        return norm(x, layer[name]["scale"] + self.config.architecture.norm_offset, self.config.rms_norm_eps)

    def projected(self, layer: dict[str, Any], name: str, x: np.ndarray) -> np.ndarray:
        return x @ layer[name]["kernel"] + layer[name].get("bias", 0.0)

    def attention(self, layer: dict[str, Any], number: int, x: np.ndarray) -> np.ndarray:
        config, width = self.config, self.config.head_dim
        if config.architecture.fused:
            ends = np.cumsum([config.num_attention_heads * width, config.num_key_value_heads * width])
            query, key, value = np.split(self.projected(layer, "qkv_proj", x), ends, axis=1)
        else:
            query, key, value = (self.projected(layer, name, x) for name in ("q_proj", "k_proj", "v_proj"))
        if config.architecture.qk_norm == "width":
            query, key = self.normed(layer, "q_norm", query), self.normed(layer, "k_norm", key)
        place = np.arange(len(x))
        distance = place[:, None] - place
        seen = (distance >= 0) & (distance < ((config.windows and config.windows[number]) or np.inf))
        rope = config.ropes[config.layer_ropes[number] if config.layer_ropes else 0]
        mixed = []
        for head in range(config.num_attention_heads):
            group = head * config.num_key_value_heads // config.num_attention_heads
            q, k, v = (
                part[:, i * width : (i + 1) * width] for part, i in ((query, head), (key, group), (value, group))
            )
            if config.architecture.qk_norm == "head":
                q, k = self.normed(layer, "q_norm", q), self.normed(layer, "k_norm", k)
            scores = turned(rope, q) @ turned(rope, k).T
            scores *= width**-0.5 if config.attention_scale is None else config.attention_scale
            weights = np.where(seen, np.exp(capped(scores, config.attention_softcap)), 0)
            mixed.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        return self.projected(layer, "o_proj", np.concatenate(mixed, axis=1))

    def mlp(self, layer: dict[str, Any], x: np.ndarray) -> np.ndarray:
        if self.config.architecture.fused:
            gate, up = np.split(self.projected(layer, "gate_up_proj", x), 2, axis=1)
        else:
            gate, up = self.projected(layer, "gate_proj", x), self.projected(layer, "up_proj", x)
        return self.projected(layer, "down_proj", activated(self.config.hidden_act, gate) * up)


def turned(rope: Rope, x: np.ndarray) -> np.ndarray:
    """`x` `T×d` at positions 0, 1, …, its pairs as complex numbers."""
    frequencies = rope.frequencies(x.shape[1])
    half = len(frequencies)
    z = (x[:, :half] + 1j * x[:, half : 2 * half]) * np.exp(1j * np.outer(np.arange(len(x)), frequencies)) * rope.factor
    return np.concatenate([z.real, z.imag, x[:, 2 * half :]], axis=1)


PRE, POST, BOTH = (tuple(norms) for norms in (PRE_NORMS, POST_NORMS, BOTH_NORMS))
TWO_ROPES = {"ropes": (Rope(500.0), Rope(20.0, divisors=(1.0, 2.0, 3.0, 4.0), factor=1.3)), "layer_ropes": (1, 0)}
GEMMA = {
    "architecture": Architecture(BOTH, qk_norm="head", norm_offset=1.0, scaled_embedding=True),
    "windows": (2, None),
    **TWO_ROPES,
    **{"attention_scale": 0.2, "attention_softcap": 1.5, "logit_softcap": 2.0, "hidden_act": "gelu_pytorch_tanh"},
    "tie_word_embeddings": True,
}
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {}),
    "fused": ({"architecture": Architecture(fused=True)}, {}),
    "biases": ({"architecture": Architecture(biases=PROJECTIONS)}, {}),
    "norms of heads": ({"architecture": Architecture(qk_norm="head")}, {}),
    "post-norms, norms of all heads": ({"architecture": Architecture(POST, qk_norm="width")}, {}),
    "both norms": ({"architecture": Architecture(BOTH)}, {}),
    "norm offset": (
        {"architecture": Architecture(norm_offset=1.0)},
        {"architecture": Architecture(norm_offset=0.0)},
    ),
    "scaled embedding": ({"architecture": Architecture(scaled_embedding=True)}, {"architecture": Architecture()}),
    "gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu_pytorch_tanh"}),
    "gelu by tanh": ({"hidden_act": "gelu_pytorch_tanh"}, {"hidden_act": "gelu"}),
    "window": ({"windows": (3, 3)}, {"windows": ()}),
    "window in a layer": ({"windows": (None, 3)}, {"windows": (3, None)}),
    "layer without rope": ({"ropes": (Rope(500.0), unrotated(8)), "layer_ropes": (0, 1)}, {"layer_ropes": (0, 0)}),
    "two ropes": (TWO_ROPES, {"layer_ropes": (0, 1)}),
    "rope on a part": ({"ropes": (Rope(500.0, width=4),)}, {"ropes": (Rope(500.0),)}),
    "scale of attention": ({"attention_scale": 0.2}, {"attention_scale": None}),
    "softcap of attention": ({"attention_softcap": 0.5}, {"attention_softcap": None}),
    "softcap of logits": ({"logit_softcap": 1.5}, {"logit_softcap": None}),
    "gemma": (GEMMA, {}),
}
"""Part -> what has it, and what takes it away again or to another place, with which the logits must be others."""

DISTINCT = {"gelu": 1e-4, "gelu by tanh": 1e-4}
"""Least difference that a part makes, where it is small: the two forms of gelu differ by 5e-4 at most."""


@pytest.mark.parametrize("part", PARTS)
def test_decoder_equals_one_by_hand(
    make_model: MakeModel, tiny_config: TransformerConfig, forward: Forward, rows: Rows, part: str
) -> None:
    fields, without = PARTS[part]
    model = make_model(dataclasses.replace(tiny_config, **fields))
    tokens, lengths = rows
    got = forward(model, None, tokens, lengths)
    assert got.dtype == jnp.float32
    by_hand = ByHand(model)
    for row, length in enumerate(lengths):
        want = by_hand.logits(tokens[row, :length])
        assert want.std() > 0.1
        np.testing.assert_allclose(got[row, :length], want, atol=2e-4)
    if without:
        full = tokens[lengths.argmax()]
        other = ByHand(LanguageModel(Decoder(dataclasses.replace(model.config, **without)), model.params))
        assert np.abs(other.logits(full) - by_hand.logits(full)).max() > DISTINCT.get(part, 0.01)


def test_padding_does_not_reach_real_tokens(
    rng: np.random.Generator, tiny_model: LanguageModel, forward: Forward, rows: Rows
) -> None:
    tokens, lengths = rows
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    junk = np.where(real, tokens, rng.integers(0, tiny_model.config.vocab_size, tokens.shape)).astype(np.int32)
    got, want = forward(tiny_model, None, junk, lengths), forward(tiny_model, None, tokens, lengths)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[real], want[real])


@jax.jit
def read(
    model: LanguageModel, adapter: Adapter | None, tokens: jax.Array, positions: jax.Array, cache: KVCache
) -> tuple[jax.Array, KVCache]:
    hidden, cache = model.decoder.apply(with_adapter(model.params, adapter), tokens, positions, cache)
    return logits(hidden, output_head(model)), cache


@pytest.mark.parametrize("part", ["llama", "gemma"])
def test_cache_token_by_token_equals_one_pass(
    rng: np.random.Generator,
    make_model: MakeModel,
    make_adapter: Callable[..., Adapter],
    tiny_config: TransformerConfig,
    forward: Forward,
    part: str,
) -> None:
    """Prompts of different lengths leave gaps in the cache, which the positions know about, and so do windows."""
    model = make_model(dataclasses.replace(tiny_config, **PARTS[part][0]))
    adapter, prompt_width, new = make_adapter(model.config), 6, 5
    prompt_lengths = np.asarray([6, 1, *rng.integers(2, 6, 2)], np.int32)
    lengths = prompt_lengths + new
    tokens = rng.integers(0, model.config.vocab_size, (4, prompt_width + new)).astype(np.int32)
    whole = forward(model, adapter, tokens, lengths)

    cache = empty_cache(model.config, 4, prompt_width + new)
    prefill = tokens[:, :prompt_width]
    got, cache = read(model, adapter, prefill, positions_of(prompt_lengths, prompt_width), cache)
    real = np.arange(prompt_width) < prompt_lengths[:, None]
    np.testing.assert_allclose(got[real], whole[:, :prompt_width][real], atol=1e-4)
    for step in range(new):
        places = (prompt_lengths + step)[:, None]
        got, cache = read(model, adapter, np.take_along_axis(tokens, places, 1), places, cache)
        want = np.take_along_axis(np.asarray(whole), places[..., None], 1)
        np.testing.assert_allclose(got, want, atol=1e-4)
    assert int(cache.used) == prompt_width + new
    held = [sorted(p for p in row if p >= 0) for row in cache.positions.tolist()]
    assert held == [list(range(length)) for length in lengths]


def test_what_is_read_at_no_position_leaves_the_cache_as_it_was(
    rng: np.random.Generator, tiny_model: LanguageModel, make_adapter: Callable[..., Adapter]
) -> None:
    """A row that has ended goes on reading tokens, at position -1."""
    adapter, rows = make_adapter(tiny_model.config), 4
    tokens = rng.integers(0, tiny_model.config.vocab_size, (3, rows, 1)).astype(np.int32)
    places = np.arange(3)[:, None, None] * np.ones((rows, 1), np.int32)
    ended = np.asarray([[True], [False], [True], [False]])
    _, cache = read(tiny_model, adapter, tokens[0], places[0], empty_cache(tiny_model.config, rows, 11))
    _, passed = read(tiny_model, adapter, tokens[1], np.where(ended, -1, places[1]), cache)
    got, _ = read(tiny_model, adapter, tokens[2], places[2], passed)
    want, _ = read(tiny_model, adapter, tokens[2], places[2], cache)
    difference = np.abs(np.asarray(got - want)).max((1, 2))
    assert (difference[ended[:, 0]] < 1e-5).all()
    assert (difference[~ended[:, 0]] > 1e-4).all()


@pytest.mark.parametrize("adapted", [False, True])
def test_bfloat16_is_close(
    make_model: MakeModel,
    make_adapter: Callable[..., Adapter],
    tiny_config: TransformerConfig,
    forward: Forward,
    rows: Rows,
    adapted: bool,
) -> None:
    wide = make_model(tiny_config)
    adapter = make_adapter(tiny_config) if adapted else None
    narrow_params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide.params)
    narrow = LanguageModel(Decoder(dataclasses.replace(tiny_config, dtype="bfloat16")), narrow_params)
    tokens, lengths = rows
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    variables = with_adapter(narrow_params, adapter)
    hidden, _ = jax.eval_shape(narrow.decoder.apply, variables, tokens, positions_of(lengths, tokens.shape[1]))
    assert hidden.dtype == jnp.bfloat16
    got, want = (np.asarray(forward(model, adapter, tokens, lengths))[real] for model in (narrow, wide))
    assert got.dtype == np.float32
    assert 0 < np.sqrt(np.mean((got - want) ** 2)) < 0.1 * want.std()
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.995


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_is_the_formula(rng: np.random.Generator, offset: float) -> None:
    x, scale, epsilon = rng.normal(size=(3, 4, 10)), rng.normal(size=10), 0.01
    layer = RMSNorm(epsilon, jnp.float32, offset)
    got = layer.apply({"params": {"scale": jnp.asarray(scale)}}, jnp.asarray(x))
    np.testing.assert_allclose(got, norm(x, scale + offset, epsilon), rtol=1e-5, atol=1e-5)
    fresh = layer.init(jax.random.key(0), jnp.asarray(x))
    np.testing.assert_allclose(layer.apply(fresh, jnp.asarray(x)), norm(x, np.ones(10), epsilon), rtol=1e-5, atol=1e-5)


def test_rms_norm_of_bfloat16_is_taken_in_float32(rng: np.random.Generator) -> None:
    """A mean of 4096 squares summed in bfloat16 would stop growing at a few hundred."""
    x = jnp.asarray(rng.normal(size=(2, 4096)), jnp.bfloat16)
    got = RMSNorm(1e-6, jnp.bfloat16).apply({"params": {"scale": jnp.ones(4096, jnp.bfloat16)}}, x)
    assert got.dtype == jnp.bfloat16
    want = norm(np.asarray(x, np.float64), np.ones(4096), 1e-6)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)


@pytest.mark.parametrize(
    "part", ["llama", "tied", "fused", "biases", "norms of heads", "post-norms, norms of all heads", "gemma"]
)
def test_params_have_the_shapes_that_checkpoints_are_read_into(
    make_model: MakeModel, tiny_config: TransformerConfig, part: str
) -> None:
    config = dataclasses.replace(tiny_config, **PARTS[part][0])
    tokens = jnp.zeros((1, 2), jnp.int32)
    made = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)
    assert set(made) == {"params"}
    assert ("lm_head" in made["params"]) is not config.tie_word_embeddings
    want = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), make_model(config).params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made["params"]) == want


def test_positions_of() -> None:
    got = positions_of(jnp.asarray([3, 0, 4]), 4)
    assert got.dtype == jnp.int32
    assert got.tolist() == [[0, 1, 2, -1], [-1, -1, -1, -1], [0, 1, 2, 3]]
