"""A small random model with an adapter, and the same decoder once more: in numpy, float64, a sequence at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import PROJECTIONS
from star_jax.models.checkpoint_hf import LanguageModel, projection_shapes
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, sequence_inputs
from star_jax.models.transformer import Decoder, TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=17,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    rope_theta=100.0,
)


@pytest.fixture(scope="session")
def small_model() -> LanguageModel:
    """Random weights, large enough that the distributions over tokens are far from uniform."""
    rng = np.random.default_rng(0)

    def normal(*shape: int):
        return jnp.asarray(rng.normal(size=shape) * 0.4, jnp.float32)

    depth, width = SHAPE.num_hidden_layers, SHAPE.hidden_size
    layers = {name: {"kernel": normal(depth, *shape)} for name, shape in projection_shapes(SHAPE).items()}
    layers |= {name: {"scale": 1 + normal(depth, width)} for name in ("input_norm", "post_attention_norm")}
    params = {
        "embed_tokens": {"embedding": normal(SHAPE.vocab_size, width)},
        "layers": layers,
        "norm": {"scale": 1 + normal(width)},
        "lm_head": normal(SHAPE.vocab_size, width),
    }
    return LanguageModel(Decoder(SHAPE), params)


@pytest.fixture(scope="session")
def small_adapter() -> Adapter:
    """Rank 3 on all projections, neither factor 0."""
    rng = np.random.default_rng(1)
    depth, rank = SHAPE.num_hidden_layers, 3
    weights = {
        name: {
            "a": jnp.asarray(rng.normal(size=(depth, fan_in, rank)) * 0.3, jnp.float32),
            "b": jnp.asarray(rng.normal(size=(depth, rank, features)) * 0.3, jnp.float32),
        }
        for name, (fan_in, features) in projection_shapes(SHAPE).items()
    }
    scale = {name: {"scale": jnp.full((depth,), 0.8)} for name in PROJECTIONS}
    return Adapter({"layers": weights}, {"layers": scale})


def _logits(model: LanguageModel, adapter: Adapter | None, tokens) -> np.ndarray:
    config, params = model.config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    groups, width, length = config.num_key_value_heads, config.head_dim, len(tokens)
    frequencies = config.rope_theta ** (-np.arange(0, width, 2) / width)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.rms_norm_eps) * scale

    def project(name, layer, x):
        kernel = params["layers"][name]["kernel"][layer]
        if adapter is not None and name in adapter.weights["layers"]:
            a, b = (np.asarray(adapter.weights["layers"][name][factor][layer], np.float64) for factor in "ab")
            kernel = kernel + a @ b * float(adapter.scale["layers"][name]["scale"][layer])
        return x @ kernel

    def rotated(x, place):
        pairs = (x[: width // 2] + 1j * x[width // 2 :]) * np.exp(1j * place * frequencies)
        return np.concatenate([pairs.real, pairs.imag])

    hidden = params["embed_tokens"]["embedding"][np.asarray(tokens)]
    for layer in range(config.num_hidden_layers):
        x = norm(hidden, params["layers"]["input_norm"]["scale"][layer])
        query, key, value = (project(name, layer, x).reshape(length, -1, width) for name in PROJECTIONS[:3])
        mixed = np.zeros_like(query)
        for head in range(config.num_attention_heads):
            group = head * groups // config.num_attention_heads
            for t in range(length):
                near = [rotated(query[t, head], t) @ rotated(key[s, group], s) / np.sqrt(width) for s in range(t + 1)]
                weights = np.exp(near) / np.exp(near).sum()
                mixed[t, head] = weights @ value[: t + 1, group]
        hidden = hidden + project("o_proj", layer, mixed.reshape(length, -1))
        x = norm(hidden, params["layers"]["post_attention_norm"]["scale"][layer])
        gate = project("gate_proj", layer, x)
        hidden = hidden + project("down_proj", layer, gate / (1 + np.exp(-gate)) * project("up_proj", layer, x))
    return norm(hidden, params["norm"]["scale"]) @ params["lm_head"].T


@pytest.fixture(scope="session")
def numpy_logits() -> Callable[..., np.ndarray]:
    """Logits `T×V` of (model, adapter, tokens), float64."""
    return _logits


def _sequences(seed: int, batch: int, prompt: int, response: int) -> SequenceInputs:
    rng = np.random.default_rng(seed)
    prompt_lengths = rng.integers(1, prompt + 1, batch).astype(np.int32)
    lengths = prompt_lengths + rng.integers(1, response + 1, batch).astype(np.int32)
    lengths[0], prompt_lengths[0] = prompt + response, prompt  # one row fills its width
    tokens = rng.integers(0, SHAPE.vocab_size, (batch, prompt + response)).astype(np.int32)
    return sequence_inputs(
        np.where(np.arange(prompt + response) < lengths[:, None], tokens, 0), prompt_lengths, lengths
    )


@pytest.fixture(scope="session")
def draw_sequences() -> Callable[[int, int, int, int], SequenceInputs]:
    """Right-padded random sequences of (seed, batch, longest prompt, longest response)."""
    return _sequences
