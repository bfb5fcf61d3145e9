"""A small random model with an adapter, and the same decoder once more: in numpy, float64, a sequence at a time."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from random_models import PROJECTIONS, random_adapter, random_model

from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter
from star_jax.models.rotary import Rope
from star_jax.models.sequences import SequenceInputs
from star_jax.models.transformer import LanguageModel

SHAPE = TransformerConfig(
    vocab_size=17,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    ropes=(Rope(100.0),),
)


@pytest.fixture(scope="session")
def small_model() -> LanguageModel:
    return random_model(np.random.default_rng(0), SHAPE)


@pytest.fixture(scope="session")
def small_adapter() -> Adapter:
    return random_adapter(np.random.default_rng(1), SHAPE, scale=0.8)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[None]]:
    """Gives a list that each call of a module's function, by its name, makes longer."""

    def count(module, name: str) -> list[None]:
        function, calls = getattr(module, name), []

        def called(*arguments, **options):
            calls.append(None)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, called)
        return calls

    return count


def _logits(model: LanguageModel, adapter: Adapter | None, tokens) -> np.ndarray:
    config, params = model.config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    groups, width, length = config.num_key_value_heads, config.head_dim, len(tokens)
    frequencies = config.ropes[0].theta ** (-np.arange(0, width, 2) / width)

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
        x = norm(hidden, params["layers"]["pre_attention_norm"]["scale"][layer])
        query, key, value = (project(name, layer, x).reshape(length, -1, width) for name in PROJECTIONS[:3])
        mixed = np.zeros_like(query)
        for head in range(config.num_attention_heads):
            group = head * groups // config.num_attention_heads
            for t in range(length):
                near = [rotated(query[t, head], t) @ rotated(key[s, group], s) / np.sqrt(width) for s in range(t + 1)]
                weights = np.exp(near) / np.exp(near).sum()
                mixed[t, head] = weights @ value[: t + 1, group]
        hidden = hidden + project("o_proj", layer, mixed.reshape(length, -1))
        x = norm(hidden, params["layers"]["pre_mlp_norm"]["scale"][layer])
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
    return SequenceInputs(np.where(np.arange(prompt + response) < lengths[:, None], tokens, 0), prompt_lengths, lengths)


@pytest.fixture(scope="session")
def draw_sequences() -> Callable[[int, int, int, int], SequenceInputs]:
    """Right-padded random sequences of (seed, batch, longest prompt, longest response)."""
    return _sequences
