"""The LoRA layer against explicit kernels, and its dropout against models whose A is masked by hand."""

import dataclasses
from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PROJECTIONS
from scipy import stats

from star_jax.config import ConfigError, LoraConfig
from star_jax.models.checkpoint_hf import projection_shapes
from star_jax.models.lora import (
    Adapter,
    Dropout,
    Factors,
    LoraDense,
    b_norm,
    init_adapter,
    row_keys,
    with_adapter,
)
from star_jax.models.quantization import Quantization, quantize
from star_jax.models.transformer import Architecture, LanguageModel, TransformerConfig

Rows = tuple[np.ndarray, np.ndarray]
Forward = Callable[..., jax.Array]
MakeAdapter = Callable[..., Adapter]

RATE = 0.3
"""One rate in all tests, so that they share a compiled model: the rate is static."""


def real(rows: Rows) -> np.ndarray:
    tokens, lengths = rows
    return np.arange(tokens.shape[1]) < lengths[:, None]


@pytest.fixture
def key(seed: int) -> jax.Array:
    return jax.random.key(seed)


# What an adapter adds.


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("biased", [False, True])
def test_layer_is_kernel_plus_scaled_product(rng: np.random.Generator, kind: Quantization, biased: bool) -> None:
    x, kernel, bias = rng.normal(size=(2, 3, 5)), rng.normal(size=(5, 4)), rng.normal(size=4)
    a, b, scale = rng.normal(size=(5, 2)), rng.normal(size=(2, 4)), 0.3
    frozen = quantize(jnp.asarray(kernel, jnp.float32), kind)
    layer = LoraDense(4, jnp.float32, biased, name="q_proj")
    params = {"kernel": frozen} | ({"bias": jnp.asarray(bias)} if biased else {})
    adapter = jax.tree.map(jnp.asarray, {"lora": {"a": a, "b": b}, "lora_scale": {"scale": scale}})
    got = layer.apply({"params": params, **adapter}, jnp.asarray(x), jnp.asarray(0), None)
    rounded = kernel if kind == "none" else np.asarray(frozen.widened(jnp.float32))
    np.testing.assert_allclose(got, x @ (rounded + scale * a @ b) + (bias if biased else 0), atol=1e-5)


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
    x = jnp.asarray(rng.integers(-2, 3, (1, 2, 8)), jnp.bfloat16)
    variables = {
        "params": {"kernel": jnp.zeros((8, 4), jnp.bfloat16)},
        "lora": {"a": 240 * jnp.eye(8, 8), "b": jnp.eye(8, 4)},
        "lora_scale": {"scale": jnp.float32(scale)},
    }
    got = LoraDense(4, jnp.bfloat16).apply(variables, x, jnp.asarray(0), None)
    want = (np.asarray(x[..., :4], np.float32) * 240 * np.float32(scale)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(got, np.float32), want.astype(np.float32))


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
    dropout = Dropout(jax.random.split(key, len(rows[0])), RATE, "tied")
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

    def loss(weights: Factors) -> jax.Array:
        return jnp.sum(forward(tiny_model, Adapter(weights, adapter.scale), *rows) ** 2)

    for name, factors in jax.grad(loss)(adapter.weights)["layers"].items():
        chosen = np.asarray(adapter.scale["layers"][name]["scale"]) > 0
        assert factors["b"][chosen].any()
        assert not any(factors[factor][~chosen].any() for factor in "ab")


# Dropout.


@pytest.mark.parametrize(("rate", "mode"), [(0.0, "tied"), (1.0, "tied"), (-0.1, "per_token"), (0.1, "off")])
def test_dropout_is_validated(key: jax.Array, rate: float, mode: str) -> None:
    with pytest.raises(ConfigError, match="dropout mode is 'off'" if mode == "off" else f"dropout .* rate {rate}"):
        Dropout(jax.random.split(key, 2), rate, mode)


def test_masks_have_their_rate_and_are_tied_or_not(key: jax.Array) -> None:
    rate, x = RATE, jnp.ones((3, 20, 400))
    keys = jax.random.split(key, 3)
    masks = {mode: np.asarray(Dropout(keys, rate, mode)(x, jnp.asarray(5))) for mode in ("tied", "per_token")}
    for mask in masks.values():
        np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=2**-15)  # the rate is a multiple of 2⁻¹⁶
    tied, per_token = (mask > 0 for mask in masks.values())
    assert (tied == tied[:, :1]).all()
    for kept in (tied[:, 0], per_token):
        assert stats.binomtest(int(kept.sum()), kept.size, 1 - rate).pvalue > 1e-7
    # Different tokens, rows and sites agree as often as independent masks do, not more.
    agree = (1 - rate) ** 2 + rate**2
    elsewhere = np.asarray(Dropout(keys, rate, "tied")(x, jnp.asarray(6)))[:, 0] > 0
    for pair in ((per_token[:, 1:], per_token[:, :-1]), (per_token[1], per_token[0]), (tied[:, 0], elsewhere)):
        same = pair[0] == pair[1]
        assert stats.binomtest(int(same.sum()), same.size, agree).pvalue > 1e-7
    same = tied[1, 0] == tied[0, 0]
    assert stats.binomtest(int(same.sum()), same.size, agree).pvalue > 1e-7


def masks_of(dropout: Dropout, name: str, depth: int, width: int) -> np.ndarray:
    """The factors `L×B×in` that each row's tied masks put on A's rows."""
    sites = jnp.arange(depth) * len(PROJECTIONS) + PROJECTIONS.index(name)
    return np.asarray(jax.vmap(partial(dropout, jnp.ones((len(dropout.keys), 1, width))))(sites))[:, :, 0]


def test_tied_masks_are_a_sample_of_a(
    key: jax.Array, tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows
) -> None:
    """The pass with tied masks equals one without dropout whose A is diag(m) A / (1 - p), row by row."""
    config, adapter = tiny_model.config, make_adapter(tiny_model.config)
    dropout = Dropout(jax.random.split(key, len(rows[0])), RATE, "tied")
    got = forward(tiny_model, adapter, *rows, dropout)
    masks = {
        name: masks_of(dropout, name, config.num_hidden_layers, projection_shapes(config)[name][0])
        for name in PROJECTIONS
    }
    distinct = {mask.tobytes() for of_name in masks.values() for layer in of_name for mask in layer}
    assert len(distinct) == len(PROJECTIONS) * config.num_hidden_layers * len(rows[0])
    for row, length in enumerate(rows[1]):
        masked = {
            name: {"a": np.asarray(factors["a"]) * masks[name][:, row, :, None], "b": factors["b"]}
            for name, factors in adapter.weights["layers"].items()
        }
        want = forward(tiny_model, adapter._replace(weights={"layers": masked}), *rows)
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=1e-4)


@pytest.mark.parametrize("mode", ["tied", "per_token"])
def test_a_row_does_not_depend_on_its_batch(
    key: jax.Array,
    rng: np.random.Generator,
    tiny_model: LanguageModel,
    make_adapter: MakeAdapter,
    forward: Forward,
    rows: Rows,
    mode: str,
) -> None:
    """Neither on the other rows nor on its place among them."""
    adapter, (tokens, lengths) = make_adapter(tiny_model.config), rows
    index = rng.integers(0, 10_000, len(tokens))

    def run(order: np.ndarray) -> np.ndarray:
        dropout = Dropout(row_keys(key, jnp.asarray(index[order])), RATE, mode)
        return np.asarray(forward(tiny_model, adapter, tokens[order], lengths[order], dropout))

    want = run(np.arange(len(tokens)))
    assert np.abs(want - forward(tiny_model, adapter, *rows))[real(rows)].max() > 0.1
    order = rng.permutation(len(tokens))
    np.testing.assert_allclose(run(order)[real(rows)[order]], want[order][real(rows)[order]], atol=1e-5)
    others = np.asarray([0, 0, 1, 0])
    np.testing.assert_allclose(run(others)[2, : lengths[1]], want[1, : lengths[1]], atol=1e-5)


@pytest.mark.parametrize("mode", ["tied", "per_token"])
def test_masks_do_not_depend_on_the_width_rows_are_padded_to(
    key: jax.Array, rng: np.random.Generator, mode: str
) -> None:
    dropout = Dropout(jax.random.split(key, 2), RATE, mode)
    x, site = jnp.asarray(rng.normal(size=(2, 9, 6))), jnp.asarray(3)
    np.testing.assert_array_equal(dropout(x, site)[:, :5], dropout(x[:, :5], site))


@pytest.mark.parametrize("mode", ["tied", "per_token"])
def test_layer_under_vmap_over_keys_is_the_loop(key: jax.Array, rng: np.random.Generator, mode: str) -> None:
    x, layer = jnp.asarray(rng.normal(size=(2, 4, 6))), LoraDense(5, jnp.float32, name="o_proj")
    factors = {"a": jnp.asarray(rng.normal(size=(6, 2))), "b": jnp.asarray(rng.normal(size=(2, 5)))}
    variables = {"params": {"kernel": jnp.zeros((6, 5))}, "lora": factors, "lora_scale": {"scale": jnp.ones(())}}

    @jax.jit
    def sample(sample_key: jax.Array) -> jax.Array:
        return layer.apply(variables, x, jnp.asarray(1), Dropout(jax.random.split(sample_key, 2), RATE, mode))

    keys = jax.random.split(key, 5)
    got = jax.vmap(sample)(keys)
    np.testing.assert_allclose(got, jnp.stack([sample(one) for one in keys]), atol=1e-5)
    assert len(np.unique(np.round(got[:, 0, 0, 0], 6))) > 1


def test_model_under_vmap_over_keys_is_the_loop(
    key: jax.Array, tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows
) -> None:
    adapter = make_adapter(tiny_model.config)
    index, keys = jnp.arange(len(rows[0])), jax.random.split(key, 3)

    def sample(sample_key: jax.Array) -> jax.Array:
        return forward(tiny_model, adapter, *rows, Dropout(row_keys(sample_key, index), RATE, "tied"))

    got = np.asarray(jax.vmap(sample)(keys))
    for number in range(3):
        np.testing.assert_allclose(got[number][real(rows)], sample(keys[number])[real(rows)], atol=1e-4)
    assert got.std(axis=0)[real(rows)].max() > 0.01


def test_dropout_leaves_the_base_model_alone(
    key: jax.Array, tiny_model: LanguageModel, forward: Forward, rows: Rows
) -> None:
    dropout = Dropout(jax.random.split(key, len(rows[0])), RATE, "tied")
    np.testing.assert_array_equal(forward(tiny_model, None, *rows, dropout), forward(tiny_model, None, *rows))


def test_row_keys_are_those_of_the_row_numbers(key: jax.Array) -> None:
    index = jnp.asarray([7, 0, 7])
    got = jax.random.key_data(row_keys(key, index))
    fold = partial(jax.random.fold_in, key)
    np.testing.assert_array_equal(got, jnp.stack([jax.random.key_data(fold(number)) for number in (7, 0, 7)]))
