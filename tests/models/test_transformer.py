"""Every part of the decoder against plain numpy, and what padding and bfloat16 may not change."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES, PROJECTIONS, TWO_ROPES
from scipy import special

from star_jax.checkpoints.families import BOTH_NORMS, POST_NORMS
from star_jax.config import LoraConfig
from star_jax.errors import ConfigError
from star_jax.models.architecture import Architecture, Experts, TransformerConfig
from star_jax.models.dropout import Dropout
from star_jax.models.lora import Adapter, Factors, init_adapter, with_adapter
from star_jax.models.rotary import Rope, unrotated
from star_jax.models.transformer import UNROLLED_LAYERS, Decoder, LanguageModel

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
        x = x * config.embedding_multiplier
        for number in range(config.num_hidden_layers):
            layer = jax.tree.map(lambda leaf: leaf[number], params["layers"])  # noqa: B023
            added = self.attention(layer, number, self.normed(layer, "pre_attention_norm", x))
            x = x + config.residual_multiplier * self.normed(layer, "post_attention_norm", added)
            added = self.mlp(layer, self.normed(layer, "pre_mlp_norm", x))
            x = x + config.residual_multiplier * self.normed(layer, "post_mlp_norm", added)
        x = self.normed(params, "norm", x)
        head = params["embed_tokens"]["embedding"] if config.tie_word_embeddings else params["lm_head"]
        return capped(x @ head.T / config.logit_divisor, config.logit_softcap)

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
            paired = config.architecture.interleaved
            scores = turned(rope, q, paired) @ turned(rope, k, paired).T
            if rope.stretch is not None:
                beta, most = rope.stretch
                scores *= np.asarray([[1 + beta * np.log(1 + position // most)] for position in place])
            scores *= width**-0.5 if config.attention_scale is None else config.attention_scale
            weights = np.where(seen, np.exp(capped(scores, config.attention_softcap)), 0)
            mixed.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        return self.projected(layer, "o_proj", np.concatenate(mixed, axis=1))

    def mlp(self, layer: dict[str, Any], x: np.ndarray) -> np.ndarray:
        if self.config.experts is not None:
            return np.stack([self.mixture(layer["experts"], token) for token in x])
        if self.config.architecture.fused or self.config.architecture.fused_mlp:
            gate, up = np.split(self.projected(layer, "gate_up_proj", x), 2, axis=1)
        else:
            gate, up = self.projected(layer, "gate_proj", x), self.projected(layer, "up_proj", x)
        return self.projected(layer, "down_proj", activated(self.config.hidden_act, gate) * up)

    def mixture(self, layer: dict[str, Any], token: np.ndarray) -> np.ndarray:
        """What the experts with the highest chances make of a token, weighted by these."""
        experts = self.config.experts
        assert experts is not None
        chances = np.exp(token @ layer["router"])
        chances /= chances.sum()
        best = np.argsort(-chances)[: experts.per_token]
        whole = chances[best].sum() if experts.normalised else 1.0
        made = np.zeros_like(token)
        for number in best:
            gate, up = np.split(token @ layer["gate_up"][number], 2)
            made += chances[number] / whole * (activated(self.config.hidden_act, gate) * up) @ layer["down"][number]
        return made


def turned(rope: Rope, x: np.ndarray, interleaved: bool = False) -> np.ndarray:
    """`x` `T×d` at positions 0, 1, …, its pairs as complex numbers."""
    frequencies = rope.frequencies(x.shape[1])
    half = len(frequencies)
    if interleaved:
        # The even entries, then the odd ones, and what is not rotated: products of two such are the same as before.
        x = np.concatenate([x[:, 0 : 2 * half : 2], x[:, 1 : 2 * half : 2], x[:, 2 * half :]], axis=1)
    z = (x[:, :half] + 1j * x[:, half : 2 * half]) * np.exp(1j * np.outer(np.arange(len(x)), frequencies)) * rope.factor
    return np.concatenate([z.real, z.imag, x[:, 2 * half :]], axis=1)


POST, BOTH = tuple(POST_NORMS), tuple(BOTH_NORMS)
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": ({"tie_word_embeddings": True}, {}),
    "fused": ({"architecture": Architecture(fused=True)}, {}),
    "gate and up fused": ({"architecture": Architecture(fused_mlp=True)}, {}),
    "neighbours rotated": ({"architecture": Architecture(interleaved=True)}, {"architecture": Architecture()}),
    "stretched queries": ({"ropes": (Rope(500.0, stretch=(0.5, 3.0)),)}, {"ropes": (Rope(500.0),)}),
    "multiplier of embeddings": ({"embedding_multiplier": 3.0}, {"embedding_multiplier": 1.0}),
    "multiplier of the stream": ({"residual_multiplier": 0.4}, {"residual_multiplier": 1.0}),
    "divisor of logits": ({"logit_divisor": 0.5}, {"logit_divisor": 1.0}),
    "experts": ({"experts": Experts(5, 2, 12)}, {"experts": Experts(5, 1, 12)}),
    "experts whose weights add up to less": (
        {"experts": Experts(5, 3, 12, normalised=False)},
        {"experts": Experts(5, 3, 12)},
    ),
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
    **{family: (fields, {}) for family, fields in FAMILIES.items()},
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


def test_rematerialising_changes_neither_states_nor_gradient(
    seed: int, tiny_model: LanguageModel, make_adapter: Callable[..., Adapter], rows: Rows
) -> None:
    """Dropout draws the same masks again."""
    adapter = make_adapter(tiny_model.config)
    dropout = Dropout(jax.random.split(jax.random.key(seed), len(rows[0])), 0.3, "per_token")

    def value_and_gradient(decoder: Decoder) -> tuple[jax.Array, Factors]:
        def loss(weights: Factors) -> jax.Array:
            variables = with_adapter(tiny_model.params, Adapter(weights, adapter.scale))
            return jnp.sum(jnp.square(decoder.apply(variables, rows[0], dropout)[0]))

        return jax.jit(jax.value_and_grad(loss))(adapter.weights)

    decoder = tiny_model.decoder
    got, want = (value_and_gradient(one) for one in (decoder.clone(rematerialise=True), decoder))
    # Of sums over many tokens: small ones among them are as far off as large ones.
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert "remat" in str(
        jax.make_jaxpr(decoder.clone(rematerialise=True).apply)({"params": tiny_model.params}, rows[0])
    )


@pytest.fixture
def optimised_programs() -> Iterator[None]:
    """What is measured is what users run."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def planned_bytes(decoder: Decoder, rows: int, width: int) -> int:
    """What the compiler plans to hold for the adapter's gradient, beside weights and result. Nothing is run."""
    key, tokens = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((rows, width), jnp.int32)
    params = jax.eval_shape(decoder.init, key, tokens)["params"]
    adapter = jax.eval_shape(partial(init_adapter, config=LoraConfig(rank=4)), key, params)

    def gradient(adapter: Adapter, params: Any, tokens: jax.Array) -> Factors:
        def loss(weights: Factors) -> jax.Array:
            hidden = decoder.apply(with_adapter(params, Adapter(weights, adapter.scale)), tokens)[0]
            return jnp.sum(hidden.astype(jnp.float32))

        return jax.grad(loss)(adapter.weights)

    plan = jax.jit(gradient).lower(adapter, params, tokens).compile().memory_analysis()
    return plan.temp_size_in_bytes


@pytest.mark.usefixtures("optimised_programs")
def test_rematerialising_holds_one_layer_instead_of_all(tiny_config: TransformerConfig) -> None:
    """In a model of few layers too, whose loop is otherwise written out."""
    shape = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": UNROLLED_LAYERS}
    decoder = Decoder(dataclasses.replace(tiny_config, **shape))
    kept, anew = (planned_bytes(decoder.clone(rematerialise=choice), 8, 64) for choice in (False, True))
    assert anew < 0.6 * kept


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_has_room_for_the_token_itself(tiny_config: TransformerConfig, window: int) -> None:
    with pytest.raises(ConfigError, match=f"sliding_window is {window}; a token sees at least 1 position"):
        dataclasses.replace(tiny_config, windows=(None, window))


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
    hidden, kept = jax.eval_shape(narrow.decoder.apply, with_adapter(narrow_params, adapter), tokens)
    assert hidden.dtype == kept.keys.dtype == kept.values.dtype == jnp.bfloat16
    got, want = (np.asarray(forward(model, adapter, tokens, lengths))[real] for model in (narrow, wide))
    assert got.dtype == np.float32
    assert 0 < np.sqrt(np.mean((got - want) ** 2)) < 0.1 * want.std()
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.995


@pytest.mark.parametrize(
    "part", ["llama", "tied", "fused", "biases", "norms of heads", "post-norms, norms of all heads", "gemma"]
)
def test_params_have_the_shapes_that_checkpoints_are_read_into(
    make_model: MakeModel, tiny_config: TransformerConfig, part: str
) -> None:
    config = dataclasses.replace(tiny_config, **PARTS[part][0])
    tokens = jnp.zeros((1, 2), jnp.int32)
    made = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens)
    assert set(made) == {"params"}
    assert ("lm_head" in made["params"]) is not config.tie_word_embeddings
    want = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), make_model(config).params)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made["params"]) == want
