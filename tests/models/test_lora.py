"""The LoRA layer against explicit kernels, and fresh adapters; its dropout has a file of its own."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PROJECTIONS
from scipy import stats

from star_jax.config import LoraConfig
from star_jax.errors import ConfigError
from star_jax.models.architecture import Architecture, TransformerConfig
from star_jax.models.dropout import Dropout
from star_jax.models.lora import (
    Adapter,
    Factors,
    LoraDense,
    b_norm,
    init_adapter,
    with_adapter,
)
from star_jax.models.transformer import LanguageModel
from star_jax.ops.matmul import DropoutMask
from star_jax.ops.quantization import Kernel, Quantization, quantize

Rows = tuple[np.ndarray, np.ndarray]
Forward = Callable[..., jax.Array]
MakeAdapter = Callable[..., Adapter]


def real(rows: Rows) -> np.ndarray:
    tokens, lengths = rows
    return np.arange(tokens.shape[1]) < lengths[:, None]


@pytest.fixture
def key(seed: int) -> jax.Array:
    return jax.random.key(seed)


# What an adapter adds.


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [(1, 1), (2, 1), (2, 3), (4, 10)])
def test_layer_is_kernel_plus_scaled_product(
    rng: np.random.Generator, tokens: tuple[int, int], kind: Quantization, biased: bool
) -> None:
    """For few tokens, which go through A and B, and for many, for which these are multiplied first."""
    x, kernel, bias = rng.normal(size=(*tokens, 5)), rng.normal(size=(5, 4)), rng.normal(size=4)
    a, b, scale = rng.normal(size=(5, 2)), rng.normal(size=(2, 4)), 0.3
    frozen = quantize(jnp.asarray(kernel, jnp.float32), kind)
    layer = LoraDense(4, jnp.float32, biased, name="q_proj")
    params = {"kernel": frozen} | ({"bias": jnp.asarray(bias)} if biased else {})
    adapter = jax.tree.map(jnp.asarray, {"lora": {"a": a, "b": b}, "lora_scale": {"scale": scale}})

    @jax.jit
    def run(variables: dict[str, Any], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        frozen = variables["params"]["kernel"]
        return layer.apply(variables, x, None), frozen if kind == "none" else frozen.dequantize(jnp.float32)

    got, widened = run({"params": params, **adapter}, x)
    rounded = kernel if kind == "none" else np.asarray(widened)
    np.testing.assert_allclose(got, x @ (rounded + scale * a @ b) + (bias if biased else 0), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [(1, 2), (3, 8)])
@pytest.mark.parametrize(
    ("mask", "kind"),
    [(mask, "none") for mask in ("none", "shared", "tied", "per_token")]
    + [(mask, kind) for mask in ("none", "tied") for kind in ("int8", "nf4")],
)
def test_gradient_of_a_layer_is_that_of_the_formula(
    rng: np.random.Generator, tokens: tuple[int, int], mask: str, kind: Quantization, dtype: str
) -> None:
    """For its input, both factors and the scale, whichever way the products are taken."""
    shapes = {"x": (*tokens, 6), "direction": (*tokens, 4), "kernel": (6, 4), "a": (6, 2), "b": (2, 4)}
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    kinds: dict[str, tuple[int, ...]] = {"shared": (6,), "tied": (tokens[0], 1, 6), "per_token": (*tokens, 6)}
    mask = DropoutMask(jnp.asarray(rng.random(kinds[mask]) < 0.6), 1 / 0.6) if mask in kinds else None
    x, direction, kernel = (jnp.asarray(drawn[name], dtype) for name in ("x", "direction", "kernel"))
    frozen = quantize(kernel, kind)
    plain = (frozen if kind == "none" else frozen.dequantize(dtype)).astype(jnp.float32)

    def layer(x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
        variables = {"params": {"kernel": frozen}, "lora": {"a": a, "b": b}, "lora_scale": {"scale": scale}}
        return LoraDense(4, jnp.dtype(dtype)).apply(variables, x, mask)

    def formula(kernel: jax.Array, x: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
        thinned = x if mask is None else x * mask.entries * mask.scale
        return x @ kernel + scale * ((thinned @ a) @ b)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradient(function: Callable[..., jax.Array], along: jax.Array, *at: jax.Array) -> list[jax.Array]:
        value, pull = jax.vjp(function, *at)
        return [value, *pull(along.astype(value.dtype))]

    adapter, exact = (drawn["a"], drawn["b"], np.float32(0.7)), x.astype(jnp.float32)
    got = value_and_gradient(layer, direction, x, *adapter)
    want = value_and_gradient(partial(formula, plain), direction, exact, *adapter)
    assert [part.dtype for part in got] == [dtype, dtype, jnp.float32, jnp.float32, jnp.float32]
    # Sums of the same terms without their signs: what is rounded is a part of these, however much cancels.
    sizes = value_and_gradient(partial(formula, jnp.abs(plain)), *map(jnp.abs, (direction, exact, *adapter)))
    for found, expected, size in zip(got, want, sizes, strict=True):
        error = np.abs(np.asarray(found, np.float32) - expected)
        assert (error <= (2e-6 if dtype == "float32" else 0.02) * size).all()


def test_base_model_is_the_same_apply_without_the_adapter(
    tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows
) -> None:
    adapter = make_adapter(tiny_model.config)
    assert with_adapter(tiny_model.params, None) == {"params": tiny_model.params}
    assert set(with_adapter(tiny_model.params, adapter)) == {"params", "lora", "lora_scale"}
    zero = jax.tree_util.tree_map_with_path(lambda path, x: np.asarray(x) * (path[-1].key != "b"), adapter.weights)
    base = forward(tiny_model, None, *rows)
    np.testing.assert_array_equal(forward(tiny_model, adapter._replace(weights=zero), *rows), base)
    assert np.abs(forward(tiny_model, adapter, *rows) - base).max() > 0.1


@pytest.mark.parametrize("targets", [PROJECTIONS, ("v_proj", "down_proj")])
def test_adapter_adds_its_product_to_the_kernels(
    tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows, targets: tuple[str, ...]
) -> None:
    adapter = make_adapter(tiny_model.config, targets=targets)
    layers = dict(tiny_model.params["layers"])
    for name in targets:
        factors = jax.tree.map(np.asarray, adapter.weights["layers"][name])
        scale = np.asarray(adapter.scale["layers"][name]["scale"])
        delta = [s * a @ b for s, a, b in zip(scale, factors["a"], factors["b"], strict=True)]
        layers[name] = {"kernel": layers[name]["kernel"] + np.stack(delta)}
    merged = tiny_model.replace(params={**tiny_model.params, "layers": layers})
    np.testing.assert_allclose(
        forward(merged, None, *rows)[real(rows)], forward(tiny_model, adapter, *rows)[real(rows)], atol=1e-4
    )


def test_b_norm(tiny_model: LanguageModel, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(tiny_model.config)
    entries = [np.asarray(factors["b"]).ravel() for factors in adapter.weights["layers"].values()]
    assert float(b_norm(adapter)) == pytest.approx(np.linalg.norm(np.concatenate(entries)), rel=1e-5)


def test_gradient_is_of_the_adapter_alone(
    rng: np.random.Generator, tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows
) -> None:
    adapter = make_adapter(tiny_model.config)
    direction = jnp.asarray(rng.normal(size=(*rows[0].shape, tiny_model.config.vocab_size)) * real(rows)[..., None])

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(weights: Factors) -> jax.Array:
        return jnp.mean(direction * forward(tiny_model, Adapter(weights, adapter.scale), *rows))

    weights, gradient = jax.tree.map(np.asarray, (adapter.weights, value_and_grad(adapter.weights)[1]))
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, weights)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    step = 0.003 / norm
    ahead, behind = (
        value_and_grad(jax.tree.map(lambda x, g, s=sign: x + np.float32(s * step) * g, weights, gradient))[0]
        for sign in (1, -1)
    )
    assert float(ahead - behind) / (2 * step) == pytest.approx(norm**2, rel=0.03)

    at_start = jax.tree_util.tree_map_with_path(lambda path, x: x * (path[-1].key != "b"), weights)
    for factors in jax.tree.map(np.asarray, value_and_grad(at_start)[1])["layers"].values():
        assert not factors["a"].any()
        assert factors["b"].any((1, 2)).all()


@pytest.mark.parametrize("scale", [2 / 3, 16 / 24])
def test_the_scale_is_not_rounded_to_the_models_type(rng: np.random.Generator, key: jax.Array, scale: float) -> None:
    """2/3 in bfloat16 is 0.66797; with numbers that bfloat16 holds, the product shows which was used."""
    x = np.asarray(rng.integers(-2, 3, (1, 2, 8)), jnp.bfloat16)
    variables = {
        "params": {"kernel": np.zeros((8, 4), jnp.bfloat16)},
        "lora": {"a": np.float32(240 * np.eye(8, 8)), "b": np.eye(8, 4, dtype=np.float32)},
        "lora_scale": {"scale": np.float32(scale)},
    }
    got = jax.jit(partial(LoraDense(4, jnp.bfloat16).apply, mask=None))(variables, x)
    want = (np.asarray(x[..., :4], np.float32) * 240 * np.float32(scale)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(got, np.float32), want.astype(np.float32))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_on_a_quantised_kernel_too_the_adapters_gradient_is_not_rounded(
    rng: np.random.Generator, kind: Quantization
) -> None:
    """Nor are the parts of the sum by themselves: the layer is that of the widened kernel, to the last bit."""
    x, direction = (jnp.asarray(rng.normal(size=(2, 5, width)), jnp.bfloat16) for width in (64, 8))
    frozen = quantize(jnp.asarray(rng.normal(size=(64, 8)), jnp.bfloat16), kind)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((64, 2), (2, 8)))

    @jax.jit
    def run(kernel: Kernel) -> list[jax.Array]:
        def layer(a: jax.Array, b: jax.Array) -> jax.Array:
            variables = {
                "params": {"kernel": kernel},
                "lora": {"a": a, "b": b},
                "lora_scale": {"scale": np.float32(2 / 3)},
            }
            return LoraDense(8, jnp.bfloat16).apply(variables, x, None)

        value, pull = jax.vjp(layer, a, b)
        return [value, *pull(direction)]

    got, want = run(frozen), run(frozen.dequantize(jnp.bfloat16))
    for found, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert all((found != found.astype(jnp.bfloat16)).any() for found in got[1:])


# A fresh adapter.


@pytest.mark.parametrize("init", ["gaussian", "kaiming_uniform"])
def test_fresh_adapter_has_its_distribution(key: jax.Array, init: str) -> None:
    layers = {"q_proj": (96, 40), "down_proj": (50, 96)}
    params = {"layers": {name: {"kernel": jnp.zeros((2, *shape))} for name, shape in layers.items()}}
    config = LoraConfig(rank=16, alpha=24.0, targets=tuple(layers), init=init)
    adapter = init_adapter(key, params, config)
    assert set(adapter.weights["layers"]) == set(adapter.scale["layers"]) == set(layers)
    drawn = []
    for name, (width, features) in layers.items():
        a, b = (adapter.weights["layers"][name][factor] for factor in "ab")
        assert a.shape == (2, width, 16)
        assert b.shape == (2, 16, features)
        assert a.dtype == b.dtype == jnp.float32
        assert not b.any()
        np.testing.assert_array_equal(adapter.scale["layers"][name]["scale"], [1.5, 1.5])
        bound = width**-0.5
        law = stats.norm(scale=0.25) if init == "gaussian" else stats.uniform(-bound, 2 * bound)
        drawn.append(law.cdf(np.asarray(a)).ravel())
        assert stats.kstest(drawn[-1], "uniform").pvalue > 1e-7
    # No two layers, and no two projections, start from the same numbers.
    values = np.concatenate(drawn)
    assert len(np.unique(np.round(values, 6))) > 0.99 * len(values)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_fresh_adapter_is_the_same_on_quantised_kernels(
    key: jax.Array, tiny_model: LanguageModel, kind: Quantization
) -> None:
    config = LoraConfig(rank=2)
    layers = {
        name: {"kernel": quantize(layer["kernel"], kind)} if "kernel" in layer else layer
        for name, layer in tiny_model.params["layers"].items()
    }
    got = init_adapter(key, {**tiny_model.params, "layers": layers}, config)
    chex.assert_trees_all_equal(got, init_adapter(key, tiny_model.params, config))
    assert set(got.weights["layers"]) == set(PROJECTIONS)  # by default, all there are


def test_fused_projections_get_one_adapter(
    key: jax.Array,
    make_model: Callable[[TransformerConfig], LanguageModel],
    tiny_config: TransformerConfig,
    forward: Forward,
    rows: Rows,
) -> None:
    model = make_model(dataclasses.replace(tiny_config, architecture=Architecture(fused=True)))
    adapter = init_adapter(key, model.params, LoraConfig(rank=2, targets=("qkv_proj", "mlp.gate_up_proj")))
    shapes = {name: factors["b"].shape for name, factors in adapter.weights["layers"].items()}
    assert shapes == {"qkv_proj": (2, 2, 64), "gate_up_proj": (2, 2, 80)}
    dropout = Dropout(jax.random.split(key, len(rows[0])), 0.3, "tied")
    np.testing.assert_array_equal(forward(model, adapter, *rows, dropout), forward(model, None, *rows))


def test_fresh_adapter_depends_on_its_key(key: jax.Array, tiny_model: LanguageModel) -> None:
    config = LoraConfig(rank=2, targets=("q_proj",))
    first, again = (init_adapter(key, tiny_model.params, config) for _ in range(2))
    other = init_adapter(jax.random.fold_in(key, 1), tiny_model.params, config)
    chex.assert_trees_all_equal(first, again)
    assert not jnp.array_equal(first.weights["layers"]["q_proj"]["a"], other.weights["layers"]["q_proj"]["a"])


def test_unknown_target_is_an_error(key: jax.Array, tiny_model: LanguageModel) -> None:
    with pytest.raises(
        ConfigError, match=r"lora.targets has 'query', which matches no module .*; it has q_proj, k_proj"
    ):
        init_adapter(key, tiny_model.params, LoraConfig(targets=("q_proj", "query")))
    params = {"layers": {"q_proj": tiny_model.params["layers"]["q_proj"]}}
    with pytest.raises(ConfigError, match=r"lora.targets has 'v_proj', .*; it has q_proj, with paths such as model"):
        init_adapter(key, params, LoraConfig(targets=("q_proj", "v_proj")))
    with pytest.raises(ConfigError, match=r"lora.targets has 'q_\(', which is no regular expression"):
        init_adapter(key, params, LoraConfig(targets=("q_(",)))


def test_targets_of_some_layers_leave_the_others_as_they_were(
    key: jax.Array, tiny_model: LanguageModel, forward: Forward, rows: Rows
) -> None:
    config = LoraConfig(
        rank=4, alpha=6.0, rslora=True, targets=(r".*[.]1[.]self_attn[.](q|o)_proj", "layers.0.mlp.up_proj")
    )
    adapter = init_adapter(key, tiny_model.params, config)
    assert {name: np.asarray(entry["scale"]).tolist() for name, entry in adapter.scale["layers"].items()} == {
        "q_proj": [0.0, 3.0],
        "o_proj": [0.0, 3.0],
        "up_proj": [3.0, 0.0],
    }
    base = forward(tiny_model, None, *rows)
    np.testing.assert_array_equal(forward(tiny_model, adapter, *rows), base)

    @jax.jit
    @jax.grad
    def gradient(weights: Factors) -> jax.Array:
        return jnp.sum(forward(tiny_model, Adapter(weights, adapter.scale), *rows) ** 2)

    for name, factors in jax.tree.map(np.asarray, gradient(adapter.weights))["layers"].items():
        chosen = np.asarray(adapter.scale["layers"][name]["scale"]) > 0
        assert factors["b"][chosen].any()
        assert not any(factors[factor][~chosen].any() for factor in "ab")
