"""The LoRA layer against explicit kernels, and its dropout against models whose A is masked by hand."""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from star_jax.config import PROJECTIONS, ConfigError, LoraConfig
from star_jax.models.checkpoint_hf import LanguageModel, projection_shapes
from star_jax.models.lora import Adapter, Dropout, LoraDense, b_norm, init_adapter, merge, row_keys, with_adapter
from star_jax.models.transformer import positions_of

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


def test_layer_is_kernel_plus_scaled_product(rng: np.random.Generator) -> None:
    x, kernel = rng.normal(size=(2, 3, 5)), rng.normal(size=(5, 4))
    a, b, scale = rng.normal(size=(5, 2)), rng.normal(size=(2, 4)), 0.3
    layer = LoraDense(4, jnp.float32, name="q_proj")
    variables = {"params": {"kernel": kernel}, "lora": {"a": a, "b": b}, "lora_scale": {"scale": scale}}
    got = layer.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(x), jnp.asarray(0), None)
    np.testing.assert_allclose(got, x @ (kernel + scale * a @ b), atol=1e-5)


def test_base_model_is_the_same_apply_without_the_adapter(
    tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows
) -> None:
    adapter = make_adapter(tiny_model.config)
    assert with_adapter(tiny_model.params, None) == {"params": tiny_model.params}
    assert set(with_adapter(tiny_model.params, adapter)) == {"params", "lora", "lora_scale"}
    zero = jax.tree_util.tree_map_with_path(lambda path, x: x * (path[-1].key != "b"), adapter.weights)
    base = forward(tiny_model, None, *rows)
    np.testing.assert_array_equal(forward(tiny_model, adapter._replace(weights=zero), *rows), base)
    assert np.abs(forward(tiny_model, adapter, *rows) - base).max() > 0.1


@pytest.mark.parametrize("targets", [PROJECTIONS, ("v_proj", "down_proj")])
def test_merged_kernels_equal_the_adapter(
    tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows, targets: tuple[str, ...]
) -> None:
    adapter = make_adapter(tiny_model.config, targets=targets)
    params = merge(tiny_model.params, adapter)
    for name in PROJECTIONS:
        kernel = np.asarray(tiny_model.params["layers"][name]["kernel"])
        for layer in range(len(kernel)):
            want = kernel[layer]
            if name in targets:
                factors = jax.tree.map(np.asarray, adapter.weights["layers"][name])
                scale = float(adapter.scale["layers"][name]["scale"][layer])
                want = want + scale * factors["a"][layer] @ factors["b"][layer]
            np.testing.assert_allclose(params["layers"][name]["kernel"][layer], want, atol=1e-5)
    got = forward(tiny_model.replace(params=params), None, *rows)
    np.testing.assert_allclose(got[real(rows)], forward(tiny_model, adapter, *rows)[real(rows)], atol=1e-4)


def test_merge_keeps_types_and_all_that_is_not_a_target(tiny_model: LanguageModel, make_adapter: MakeAdapter) -> None:
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_model.params)
    merged = merge(narrow, make_adapter(tiny_model.config, targets=("k_proj",)))
    assert merged["layers"]["k_proj"]["kernel"].dtype == jnp.bfloat16
    assert not jnp.array_equal(merged["layers"]["k_proj"]["kernel"], narrow["layers"]["k_proj"]["kernel"])
    merged["layers"]["k_proj"] = narrow["layers"]["k_proj"]
    chex.assert_trees_all_equal(merged, narrow)


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
    def value(weights: dict) -> jax.Array:
        return jnp.mean(direction * forward(tiny_model, Adapter(weights, adapter.scale), *rows))

    gradient = jax.grad(value)(adapter.weights)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, adapter.weights)
    norm = np.sqrt(sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(gradient)))
    step = 0.03 / norm
    ahead, behind = (
        value(jax.tree.map(lambda x, g, s=sign: x + s * step * g, adapter.weights, gradient)) for sign in (1, -1)
    )
    assert float(ahead - behind) / (2 * step) == pytest.approx(norm**2, rel=0.03)

    at_start = jax.tree_util.tree_map_with_path(lambda path, x: x * (path[-1].key != "b"), adapter.weights)
    for factors in jax.grad(value)(at_start)["layers"].values():
        assert not factors["a"].any()
        assert factors["b"].any((1, 2)).all()


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


def test_fresh_adapter_depends_on_its_key(key: jax.Array, tiny_model: LanguageModel) -> None:
    config = LoraConfig(rank=2)
    first, again = (init_adapter(key, tiny_model.params, config) for _ in range(2))
    other = init_adapter(jax.random.fold_in(key, 1), tiny_model.params, config)
    chex.assert_trees_all_equal(first, again)
    assert not jnp.array_equal(first.weights["layers"]["q_proj"]["a"], other.weights["layers"]["q_proj"]["a"])


def test_unknown_target_is_an_error(key: jax.Array, tiny_model: LanguageModel) -> None:
    with pytest.raises(ConfigError, match=r"lora.targets names query, which no layer is called; choose from q_proj"):
        LoraConfig(targets=("query",))
    params = {"layers": {"q_proj": tiny_model.params["layers"]["q_proj"]}}
    with pytest.raises(ConfigError, match=r"lora.targets names v_proj; this model has q_proj"):
        init_adapter(key, params, LoraConfig(targets=("q_proj", "v_proj")))


# Dropout.


@pytest.mark.parametrize(("rate", "mode"), [(0.0, "tied"), (1.0, "tied"), (-0.1, "per_token"), (0.1, "off")])
def test_dropout_is_validated(key: jax.Array, rate: float, mode: str) -> None:
    with pytest.raises(ConfigError, match="dropout mode is 'off'" if mode == "off" else f"dropout .* rate {rate}"):
        Dropout(jax.random.split(key, 2), rate, mode)


def test_masks_have_their_rate_and_are_tied_or_not(key: jax.Array) -> None:
    rate, x = 0.3, jnp.ones((3, 20, 400))
    keys = jax.random.split(key, 3)
    masks = {mode: np.asarray(Dropout(keys, rate, mode)(x, jnp.asarray(5))) for mode in ("tied", "per_token")}
    for mask in masks.values():
        np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
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


def masks_of(dropout: Dropout, row: int, name: str, depth: int, width: int) -> np.ndarray:
    """The factors `L×in×1` that the row's masks put on A's rows; the same for all of its tokens."""
    one = Dropout(dropout.keys[row : row + 1], dropout.rate, dropout.mode)
    sites = [layer * len(PROJECTIONS) + PROJECTIONS.index(name) for layer in range(depth)]
    return np.stack([np.asarray(one(jnp.ones((1, 1, width)), jnp.asarray(site)))[0, 0, :, None] for site in sites])


def test_tied_masks_are_a_sample_of_a(
    key: jax.Array, tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows
) -> None:
    """The pass with tied masks equals one without dropout whose A is diag(m) A / (1 - p), row by row."""
    config, adapter = tiny_model.config, make_adapter(tiny_model.config)
    dropout = Dropout(jax.random.split(key, len(rows[0])), 0.4, "tied")
    got = forward(tiny_model, adapter, *rows, dropout)
    seen = set()
    for row in range(len(rows[0])):
        masked = {}
        for name, factors in adapter.weights["layers"].items():
            width, _ = projection_shapes(config)[name]
            masks = masks_of(dropout, row, name, config.num_hidden_layers, width)
            seen |= {mask.tobytes() for mask in masks}
            masked[name] = {"a": factors["a"] * masks, "b": factors["b"]}
        want = forward(tiny_model, adapter._replace(weights={"layers": masked}), *rows)
        length = rows[1][row]
        np.testing.assert_allclose(got[row, :length], want[row, :length], atol=1e-4)
    assert len(seen) == len(rows[0]) * config.num_hidden_layers * len(PROJECTIONS)


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
    """Neither on the other rows, nor on its place among them, nor on the width they are padded to."""
    adapter, (tokens, lengths) = make_adapter(tiny_model.config), rows
    index = rng.integers(0, 10_000, len(tokens))

    def run(order: np.ndarray, pad: int = 0) -> np.ndarray:
        dropout = Dropout(row_keys(key, jnp.asarray(index[order])), 0.3, mode)
        wide = np.pad(tokens[order], ((0, 0), (0, pad)))
        return np.asarray(forward(tiny_model, adapter, wide, lengths[order], dropout))

    everyone = np.arange(len(tokens))
    want = run(everyone)
    assert np.abs(want - forward(tiny_model, adapter, *rows))[real(rows)].max() > 0.1
    order = rng.permutation(everyone)
    np.testing.assert_allclose(run(order)[real(rows)[order]], want[order][real(rows)[order]], atol=1e-5)
    twice = np.asarray([0, 0, 0, 1])
    np.testing.assert_allclose(run(twice)[2, : lengths[0]], want[0, : lengths[0]], atol=1e-5)
    np.testing.assert_allclose(run(everyone, pad=3)[:, : tokens.shape[1]][real(rows)], want[real(rows)], atol=1e-5)


@pytest.mark.parametrize("mode", ["tied", "per_token"])
def test_vmap_over_keys_is_the_loop_over_keys(
    key: jax.Array, tiny_model: LanguageModel, make_adapter: MakeAdapter, forward: Forward, rows: Rows, mode: str
) -> None:
    adapter = make_adapter(tiny_model.config)
    index, keys = jnp.arange(len(rows[0])), jax.random.split(key, 3)

    def sample(sample_key: jax.Array) -> jax.Array:
        return forward(tiny_model, adapter, *rows, Dropout(row_keys(sample_key, index), 0.3, mode))

    got = np.asarray(jax.vmap(sample)(keys))
    for number in range(3):
        np.testing.assert_allclose(got[number][real(rows)], sample(keys[number])[real(rows)], atol=1e-5)
    assert got.std(axis=0)[real(rows)].max() > 0.01


def test_dropout_leaves_the_base_model_alone(
    key: jax.Array, tiny_model: LanguageModel, forward: Forward, rows: Rows
) -> None:
    dropout = Dropout(jax.random.split(key, len(rows[0])), 0.5, "tied")
    np.testing.assert_array_equal(forward(tiny_model, None, *rows, dropout), forward(tiny_model, None, *rows))


def test_row_keys_are_those_of_the_row_numbers(key: jax.Array) -> None:
    index = jnp.asarray([7, 0, 7])
    got = jax.random.key_data(row_keys(key, index))
    fold = partial(jax.random.fold_in, key)
    np.testing.assert_array_equal(got, jnp.stack([jax.random.key_data(fold(number)) for number in (7, 0, 7)]))


def test_no_adapter_and_a_partial_one_in_one_layer_stack(
    tiny_model: LanguageModel, make_adapter: MakeAdapter, rows: Rows
) -> None:
    """Projections without factors are the base model's: an adapter of one projection changes that one alone."""
    tokens, lengths = rows
    adapter = make_adapter(tiny_model.config, targets=("up_proj",))
    variables = with_adapter(tiny_model.params, adapter)
    explicit = with_adapter(merge(tiny_model.params, adapter), None)
    apply = jax.jit(tiny_model.decoder.apply)
    got, want = (apply(v, tokens, positions_of(lengths, tokens.shape[1]))[0] for v in (variables, explicit))
    np.testing.assert_allclose(got[real(rows)], want[real(rows)], atol=1e-5)
