"""Dropout on A's input: the law of its masks, and passes against models whose A is masked by hand."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES
from scipy import stats

from star_jax.checkpoints.tensor_shapes import projection_shapes
from star_jax.config import DropoutMode
from star_jax.errors import ConfigError
from star_jax.models.architecture import TransformerConfig
from star_jax.models.dropout import Dropout, draw_mask, row_keys
from star_jax.models.lora import Adapter, LoraDense
from star_jax.models.transformer import LanguageModel
from star_jax.ops.matmul import DropoutMask
from star_jax.ops.packing import Packing, make_packing

Rows = tuple[np.ndarray, np.ndarray]
Forward = Callable[..., jax.Array]
MakeAdapter = Callable[..., Adapter]

RATE = 0.3
"""One rate in all tests, so that they share a compiled model: the rate is static."""

MODES: tuple[DropoutMode, ...] = ("shared", "tied", "per_token")
READ_BY = {
    **dict.fromkeys(("qkv_proj", "q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_up_proj", "gate_proj", "up_proj"), "gate_up_proj"),
    **{name: name for name in ("o_proj", "down_proj")},
}
"""Projection -> the name under which the mask of its input is drawn: those that read the same share it."""
SITES = tuple(dict.fromkeys(READ_BY.values()))


def real(rows: Rows) -> np.ndarray:
    tokens, lengths = rows
    return np.arange(tokens.shape[1]) < lengths[:, None]


@pytest.fixture
def key(seed: int) -> jax.Array:
    return jax.random.key(seed)


@pytest.mark.parametrize(("rate", "mode"), [(0.0, "tied"), (1.0, "tied"), (-0.1, "per_token"), (0.1, "off")])
def test_dropout_is_validated(key: jax.Array, rate: float, mode: DropoutMode) -> None:
    with pytest.raises(ConfigError, match="dropout mode is 'off'" if mode == "off" else f"dropout .* rate {rate}"):
        Dropout(jax.random.split(key, 2), rate, mode)


@pytest.mark.parametrize(
    ("mode", "shape", "message"),
    [
        ("tied", (1,), r"tied takes 3 PRNG keys, one a row, .* got key<fry>\[1\]"),
        ("per_token", (4,), r"per_token takes 3 PRNG keys, one a row, .* got key<fry>\[4\]"),
        ("tied", (), r"tied takes 3 PRNG keys, one a row, .* got key<fry>\[\]"),
        ("shared", (3,), r"shared takes a single PRNG key, .* got key<fry>\[3\]"),
    ],
)
@pytest.mark.parametrize("in_a_line", [False, True])
def test_keys_are_those_of_the_mode(
    key: jax.Array, mode: DropoutMode, shape: tuple[int, ...], message: str, in_a_line: bool
) -> None:
    """One key for three rows would be one mask for all of them."""
    dropout = Dropout(jax.random.split(key, shape) if shape else key, RATE, mode)
    packing, x = (
        (make_packing(jnp.asarray([2, 0, 1]), 2, 5), jnp.ones((1, 5, 4))) if in_a_line else (None, jnp.ones((3, 2, 4)))
    )
    with pytest.raises(ValueError, match=message):
        draw_mask(dropout, 0, "o_proj", x, packing)


def test_numbers_are_no_keys() -> None:
    with pytest.raises(ValueError, match=r"a single PRNG key, as jax.random.key makes them, and got uint32\[2\]"):
        draw_mask(Dropout(jax.random.PRNGKey(0), RATE, "shared"), 0, "o_proj", jnp.ones((3, 2, 4)))


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_what_is_kept_of_a_bfloat16_input_is_scaled_without_bias(rng: np.random.Generator, rate: float) -> None:
    """The factor 1 / (1 - rate) is no bfloat16; entries are rounded, and as often up as down."""
    size, scale = 100_000, 1 / (1 - rate)
    x = jnp.asarray(rng.uniform(1, 2, size), jnp.bfloat16)
    got, pull = jax.vjp(DropoutMask(jnp.ones(size, bool), scale).of, x)
    for found in (got, pull(x)[0]):
        assert found.dtype == jnp.bfloat16
        ratio = np.asarray(found, np.float64) / np.asarray(x, np.float64)
        assert abs(ratio.mean() / scale - 1) < 1e-4
        assert np.abs(ratio / scale - 1).max() <= 2.0**-8


def dropout_of(key: jax.Array, rows: int, mode: DropoutMode) -> Dropout:
    """One key a row, made from one key; that key itself where all rows share their masks."""
    return Dropout(key if mode == "shared" else jax.random.split(key, rows), RATE, mode)


@partial(jax.jit, static_argnames=("site", "shape"))
def of_ones(
    dropout: Dropout, layer: int, site: str, shape: tuple[int, ...], packing: Packing | None = None
) -> tuple[jax.Array, jax.Array]:
    """What is left of ones, and what the entries that are kept are multiplied by."""
    mask = draw_mask(dropout, layer, site, jnp.ones(shape), packing)
    return mask.of(jnp.ones(shape)), mask.scale


def kept_by(dropout: Dropout, layer: int, site: str, shape: tuple[int, ...]) -> np.ndarray:
    """What is left of `B×T×D` ones, before scaling: True where an entry is kept."""
    left, scale = map(np.asarray, of_ones(dropout, layer, site, shape))
    np.testing.assert_allclose(scale, 1 / (1 - RATE), rtol=1e-6)
    np.testing.assert_array_equal(np.unique(left), np.float32([0, scale]))
    return left > 0


def assert_independent(one: np.ndarray, other: np.ndarray) -> None:
    """Two masks agree as often as independent ones do, neither more nor less."""
    same = one == other
    agree = (1 - RATE) ** 2 + RATE**2
    assert stats.binomtest(int(same.sum()), same.size, agree).pvalue > 1e-7


def test_masks_have_their_rate_and_are_shared_tied_or_not(key: jax.Array) -> None:
    shape = (3, 20, 400)
    masks = {mode: kept_by(dropout_of(key, 3, mode), 5, "o_proj", shape) for mode in MODES}
    shared, tied, per_token = masks.values()
    assert (shared == shared[:1, :1]).all()
    assert (tied == tied[:, :1]).all()
    for kept in (shared[0, 0], tied[:, 0], per_token):
        assert stats.binomtest(int(kept.sum()), kept.size, 1 - RATE).pvalue > 1e-7
    # Different tokens and rows.
    assert_independent(per_token[:, 1:], per_token[:, :-1])
    assert_independent(per_token[1], per_token[0])
    assert_independent(tied[1, 0], tied[0, 0])


@pytest.mark.parametrize("mode", MODES)
def test_masks_of_layers_and_inputs_are_independent(key: jax.Array, mode: DropoutMode) -> None:
    """And so are those of different keys; an entry of an input is its place, so all inputs are as wide here."""
    shape, dropout = (2, 3, 2000), dropout_of(key, 2, mode)
    masks = [kept_by(dropout, layer, site, shape)[0, 0] for layer in (0, 1, 2, 7) for site in SITES]
    masks.append(kept_by(dropout_of(jax.random.fold_in(key, 1), 2, mode), 0, SITES[0], shape)[0, 0])
    for number, one in enumerate(masks):
        assert stats.binomtest(int(one.sum()), one.size, 1 - RATE).pvalue > 1e-7
        for other in masks[:number]:
            assert_independent(one, other)


def test_no_dropout_draws_no_mask(key: jax.Array) -> None:
    assert draw_mask(None, 0, "o_proj", jnp.ones((2, 3, 4))) is None


def masks_of(dropout: Dropout, name: str, config: TransformerConfig, rows: int) -> np.ndarray:
    """The factors `L×B×in` that masks which the tokens of a row share put on A's rows."""
    shape = (rows, 1, projection_shapes(config)[name][0])
    masks = [of_ones(dropout, layer, READ_BY[name], shape)[0] for layer in range(config.num_hidden_layers)]
    return np.stack(masks)[:, :, 0]


@pytest.mark.parametrize(("mode", "family"), [("tied", "llama"), ("shared", "llama"), ("shared", "phi")])
def test_masks_that_tokens_share_are_a_sample_of_a(
    key: jax.Array,
    make_model: Callable[[TransformerConfig], LanguageModel],
    tiny_config: TransformerConfig,
    make_adapter: MakeAdapter,
    forward: Forward,
    rows: Rows,
    mode: DropoutMode,
    family: str,
) -> None:
    """The pass equals one without dropout whose A is diag(m) A / (1 - p): one for each row, or one for all."""
    model = make_model(dataclasses.replace(tiny_config, **FAMILIES[family]))
    config, adapter, count = model.config, make_adapter(model.config), len(rows[0])
    dropout = dropout_of(key, count, mode)
    got = forward(model, adapter, *rows, dropout)
    masks = {name: masks_of(dropout, name, config, count) for name in adapter.weights["layers"]}
    distinct = {mask.tobytes() for of_name in masks.values() for layer in of_name for mask in layer}
    assert len(distinct) == len(SITES) * config.num_hidden_layers * (count if mode == "tied" else 1)
    for row in range(count) if mode == "tied" else (0,):
        masked = {
            name: {"a": np.asarray(factors["a"]) * masks[name][:, row, :, None], "b": factors["b"]}
            for name, factors in adapter.weights["layers"].items()
        }
        want = forward(model, adapter._replace(weights={"layers": masked}), *rows)
        mine = real(rows) & (np.arange(count)[:, None] == row if mode == "tied" else True)
        np.testing.assert_allclose(got[mine], want[mine], atol=1e-4)


@pytest.mark.parametrize("mode", ["tied", "per_token"])
def test_a_row_does_not_depend_on_its_batch(
    key: jax.Array,
    rng: np.random.Generator,
    tiny_model: LanguageModel,
    make_adapter: MakeAdapter,
    forward: Forward,
    rows: Rows,
    mode: DropoutMode,
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


@pytest.mark.parametrize("mode", MODES)
def test_masks_do_not_depend_on_the_width_rows_are_padded_to(key: jax.Array, mode: DropoutMode) -> None:
    dropout = dropout_of(key, 2, mode)
    wide, narrow = (kept_by(dropout, 3, "down_proj", (2, length, 50)) for length in (9, 5))
    np.testing.assert_array_equal(wide[:, :5], narrow)


@pytest.mark.parametrize("mode", MODES)
def test_a_token_has_the_same_mask_in_a_line(key: jax.Array, rng: np.random.Generator, mode: DropoutMode) -> None:
    lengths, width = rng.permutation([7, 0, 1, 4]), 7
    dropout, packing = dropout_of(key, 4, mode), jax.jit(make_packing, static_argnums=(1, 2))(lengths, width, 15)
    in_rows = kept_by(dropout, 2, "o_proj", (4, width, 50))
    in_line = np.asarray(of_ones(dropout, 2, "o_proj", (1, 15, 50), packing)[0][0]) > 0
    places = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert len(places) == 12
    for slot, place in enumerate(places):
        np.testing.assert_array_equal(in_line[slot], in_rows[place])


@pytest.mark.parametrize("mode", MODES)
def test_layer_under_vmap_over_keys_is_the_loop(key: jax.Array, rng: np.random.Generator, mode: DropoutMode) -> None:
    x, layer = jnp.asarray(rng.normal(size=(2, 4, 6))), LoraDense(5, jnp.float32, name="o_proj")
    factors = {"a": jnp.asarray(rng.normal(size=(6, 2))), "b": jnp.asarray(rng.normal(size=(2, 5)))}
    variables = {"params": {"kernel": jnp.zeros((6, 5))}, "lora": factors, "lora_scale": {"scale": jnp.ones(())}}

    @jax.jit
    def sample(sample_key: jax.Array) -> jax.Array:
        return layer.apply(variables, x, draw_mask(dropout_of(sample_key, 2, mode), 1, "o_proj", x))

    keys = jax.random.split(key, 5)
    got = np.asarray(jax.jit(jax.vmap(sample))(keys))
    np.testing.assert_allclose(got, np.stack([sample(one) for one in keys]), atol=1e-5)
    assert len(np.unique(np.round(got[:, 0, 0, 0], 6))) > 1


@pytest.mark.parametrize("mode", MODES)
def test_model_under_vmap_over_keys_is_the_loop(
    key: jax.Array,
    tiny_model: LanguageModel,
    make_adapter: MakeAdapter,
    forward: Forward,
    rows: Rows,
    mode: DropoutMode,
) -> None:
    adapter = make_adapter(tiny_model.config)
    index, keys = jnp.arange(len(rows[0])), jax.random.split(key, 3)

    def sample(sample_key: jax.Array) -> jax.Array:
        own = sample_key if mode == "shared" else row_keys(sample_key, index)
        return forward(tiny_model, adapter, *rows, Dropout(own, RATE, mode))

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
    np.testing.assert_array_equal(got, np.stack([jax.random.key_data(fold(number)) for number in (7, 0, 7)]))
