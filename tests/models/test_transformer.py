"""The decoder against a plain numpy Llama, and what padding, cache and bfloat16 may not change."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import ConfigError
from star_jax.models.checkpoint_hf import LanguageModel
from star_jax.models.head import logits, output_weight
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.transformer import (
    Decoder,
    KVCache,
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


def llama_by_hand(model: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """Logits `T×V` of one row without padding, in float64, a layer and a head at a time."""
    config = model.config
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    length, half = len(tokens), config.head_dim // 2
    turns = np.exp(1j * np.outer(np.arange(length), config.rope_theta ** (-np.arange(half) / half)))

    def turned(x: np.ndarray) -> np.ndarray:
        z = (x[:, :half] + 1j * x[:, half:]) * turns
        return np.concatenate([z.real, z.imag], axis=1)

    x = params["embed_tokens"]["embedding"][tokens]
    for number in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda leaf: leaf[number], params["layers"])  # noqa: B023
        y = norm(x, layer["input_norm"]["scale"], config.rms_norm_eps)
        query, key, value = (y @ layer[name]["kernel"] for name in ("q_proj", "k_proj", "v_proj"))
        mixed = []
        for head in range(config.num_attention_heads):
            group = head * config.num_key_value_heads // config.num_attention_heads
            of_head, of_group = (slice(i * config.head_dim, (i + 1) * config.head_dim) for i in (head, group))
            scores = turned(query[:, of_head]) @ turned(key[:, of_group]).T / np.sqrt(config.head_dim)
            weights = np.tril(np.exp(scores))
            mixed.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, of_group])
        x = x + np.concatenate(mixed, axis=1) @ layer["o_proj"]["kernel"]
        y = norm(x, layer["post_attention_norm"]["scale"], config.rms_norm_eps)
        gate = y @ layer["gate_proj"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up_proj"]["kernel"])) @ layer["down_proj"]["kernel"]
    x = norm(x, params["norm"]["scale"], config.rms_norm_eps)
    head_weight = params["embed_tokens"]["embedding"] if config.tie_word_embeddings else params["lm_head"]
    return x @ head_weight.T


@pytest.mark.parametrize("tied", [False, True])
def test_decoder_equals_a_plain_llama(
    make_model: MakeModel, tiny_config: TransformerConfig, forward: Forward, rows: Rows, tied: bool
) -> None:
    model = make_model(dataclasses.replace(tiny_config, tie_word_embeddings=tied))
    tokens, lengths = rows
    got = forward(model, None, tokens, lengths)
    assert got.dtype == jnp.float32
    for row, length in enumerate(lengths):
        want = llama_by_hand(model, tokens[row, :length])
        assert want.std() > 0.1
        np.testing.assert_allclose(got[row, :length], want, atol=1e-4)


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
    return logits(hidden, output_weight(model.params)), cache


def test_cache_token_by_token_equals_one_pass(
    rng: np.random.Generator,
    tiny_model: LanguageModel,
    make_adapter: Callable[..., Adapter],
    forward: Forward,
) -> None:
    """Prompts of different lengths leave gaps in the cache, which the positions know about."""
    adapter, prompt_width, new = make_adapter(tiny_model.config), 6, 5
    prompt_lengths = np.asarray([6, 1, *rng.integers(2, 6, 2)], np.int32)
    lengths = prompt_lengths + new
    tokens = rng.integers(0, tiny_model.config.vocab_size, (4, prompt_width + new)).astype(np.int32)
    whole = forward(tiny_model, adapter, tokens, lengths)

    cache = empty_cache(tiny_model.config, 4, prompt_width + new)
    prefill = tokens[:, :prompt_width]
    got, cache = read(tiny_model, adapter, prefill, positions_of(prompt_lengths, prompt_width), cache)
    real = np.arange(prompt_width) < prompt_lengths[:, None]
    np.testing.assert_allclose(got[real], whole[:, :prompt_width][real], atol=1e-4)
    for step in range(new):
        places = (prompt_lengths + step)[:, None]
        got, cache = read(tiny_model, adapter, np.take_along_axis(tokens, places, 1), places, cache)
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


def test_rms_norm_is_the_formula(rng: np.random.Generator) -> None:
    x, scale, epsilon = rng.normal(size=(3, 4, 10)), rng.normal(size=10), 0.01
    got = RMSNorm(epsilon, jnp.float32).apply({"params": {"scale": jnp.asarray(scale)}}, jnp.asarray(x))
    np.testing.assert_allclose(got, norm(x, scale, epsilon), rtol=1e-5, atol=1e-5)


def test_rms_norm_of_bfloat16_is_taken_in_float32(rng: np.random.Generator) -> None:
    """A mean of 4096 squares summed in bfloat16 would stop growing at a few hundred."""
    x = jnp.asarray(rng.normal(size=(2, 4096)), jnp.bfloat16)
    got = RMSNorm(1e-6, jnp.bfloat16).apply({"params": {"scale": jnp.ones(4096, jnp.bfloat16)}}, x)
    assert got.dtype == jnp.bfloat16
    want = norm(np.asarray(x, np.float64), np.ones(4096), 1e-6)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)


@pytest.mark.parametrize("tied", [False, True])
def test_params_have_the_shapes_that_checkpoints_are_read_into(
    make_model: MakeModel, tiny_config: TransformerConfig, tied: bool
) -> None:
    config = dataclasses.replace(tiny_config, tie_word_embeddings=tied)
    tokens = jnp.zeros((1, 2), jnp.int32)
    made = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)
    assert set(made) == {"params"}
    assert ("lm_head" in made["params"]) is not tied
    want = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), make_model(config).params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made["params"]) == want


def test_positions_of() -> None:
    got = positions_of(jnp.asarray([3, 0, 4]), 4)
    assert got.dtype == jnp.int32
    assert got.tolist() == [[0, 1, 2, -1], [-1, -1, -1, -1], [0, 1, 2, 3]]


RAW: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def test_config_defaults_are_those_of_hugging_face() -> None:
    config = TransformerConfig.from_hf(RAW)
    assert (config.num_key_value_heads, config.head_dim, config.tie_word_embeddings) == (4, 8, False)
    assert (config.rope_theta, config.rms_norm_eps, config.dtype) == (10000.0, 1e-6, "float32")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_rope_theta_is_read_in_old_and_new_places(rope: dict[str, Any]) -> None:
    assert TransformerConfig.from_hf(RAW | rope).rope_theta == 5e5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_other_mathematics_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TransformerConfig.from_hf(RAW | change)
