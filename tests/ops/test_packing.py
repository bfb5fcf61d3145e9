"""Rows in a line against loops over their tokens, and decoders in a line against decoders over rows."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES

from star_jax.models import transformer
from star_jax.models.architecture import TransformerConfig
from star_jax.models.dropout import Dropout, row_keys
from star_jax.models.lora import Adapter, Factors
from star_jax.models.sequences import SequenceInputs, hidden_states
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.ops import attention_xla
from star_jax.ops.packing import make_packing, pack_rows, unpack_rows

MakeModel = Callable[[TransformerConfig], LanguageModel]
MakeAdapter = Callable[..., Adapter]

WIDTH, RATE = 7, 0.3
LENGTHS = {
    "ragged": [3, 7, 1, 5],
    "empty rows": [0, 4, 0, 0, 6, 0],
    "full rows": [7, 7, 7],
    "one token": [0, 1],
}


def places_of(lengths: list[int]) -> list[tuple[int, int]]:
    """Row and position of each token, row after row."""
    return [(row, place) for row, length in enumerate(lengths) for place in range(length)]


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("name", LENGTHS)
def test_tokens_stand_one_after_another(name: str, spare: int) -> None:
    lengths = LENGTHS[name]
    places, capacity = places_of(lengths), sum(lengths) + spare
    packing = jax.tree.map(
        np.asarray, jax.jit(make_packing, static_argnums=(1, 2))(np.asarray(lengths), WIDTH, capacity)
    )
    assert packing.filled.tolist() == [number < len(places) for number in range(capacity)]
    for number, (row, place) in enumerate(places):
        assert (int(packing.rows[number]), int(packing.positions[number])) == (row, place)
        assert int(packing.packed_index[row, place]) == number
    assert packing.real.tolist() == [[place < length for place in range(WIDTH)] for length in lengths]
    # What holds nothing points at something that is there.
    for pointers, end in ((packing.rows, len(lengths)), (packing.positions, WIDTH), (packing.packed_index, capacity)):
        assert (pointers >= 0).all()
        assert (pointers < end).all()


@pytest.mark.parametrize("features", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", LENGTHS)
def test_copies_there_and_back(rng: np.random.Generator, name: str, features: tuple[int, ...]) -> None:
    lengths = LENGTHS[name]
    places, capacity = places_of(lengths), sum(lengths) + 2
    rows = rng.normal(size=(len(lengths), WIDTH, *features)).astype(np.float32)
    along, across = (rng.normal(size=shape).astype(np.float32) for shape in ((capacity, *features), rows.shape))
    want = np.zeros((capacity, *features), np.float32)
    for number, place in enumerate(places):
        want[number] = rows[place]
    index = tuple(np.asarray(places, int).reshape(-1, 2).T)

    @jax.jit
    def copies(lengths: jax.Array, rows: jax.Array, want: jax.Array) -> tuple[jax.Array, ...]:
        """There and back, what is real, and both gradients beside those that JAX makes of a gather and a scatter."""
        packing = make_packing(lengths, WIDTH, capacity)
        got = pack_rows(rows, packing)
        of_line = jax.grad(lambda x: jnp.sum(pack_rows(x, packing) * along))(rows)
        by_gather = jax.grad(lambda x: jnp.sum(x[index] * along[: len(places)]))(rows)
        of_rows = jax.grad(lambda x: jnp.sum(unpack_rows(x, packing) * across))(want)
        by_scatter = jax.grad(lambda x: jnp.sum(jnp.zeros(rows.shape).at[index].set(x[: len(places)]) * across))(want)
        return got, unpack_rows(got, packing), packing.real, of_line, by_gather, of_rows, by_scatter

    got, back, real, of_line, by_gather, of_rows, by_scatter = copies(np.asarray(lengths), rows, want)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(back, np.where(np.asarray(real).reshape(*real.shape, *(1,) * len(features)), rows, 0))
    np.testing.assert_array_equal(of_line, by_gather)
    np.testing.assert_array_equal(of_rows, by_scatter)


@pytest.fixture
def inputs(rng: np.random.Generator, tiny_config: TransformerConfig) -> SequenceInputs:
    """Rows of different lengths: one full, one of a prompt of one token and its response, one that only fills up."""
    lengths = rng.permutation(np.asarray([WIDTH, 2, 0, int(rng.integers(3, WIDTH))], np.int32))
    prompts = np.asarray([rng.integers(1, max(2, length)) for length in lengths], np.int32)
    tokens = rng.integers(0, tiny_config.vocab_size, (4, WIDTH)).astype(np.int32)
    return SequenceInputs(np.where(np.arange(WIDTH) < lengths[:, None], tokens, 0), prompts, lengths)


@pytest.mark.parametrize(
    ("family", "mode", "one_by_one"),
    [
        ("llama", "shared", True),
        ("qwen", "per_token", True),
        ("phi", "tied", False),
        ("olmo", "off", False),
        ("gemma", "per_token", True),
    ],
)
def test_a_decoder_in_a_line_is_one_over_rows(
    seed: int,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tiny_config: TransformerConfig,
    inputs: SequenceInputs,
    family: str,
    mode: str,
    one_by_one: bool,
) -> None:
    """States at all tokens, and the gradient of the adapter, whether rows attend one by one or all at once."""
    monkeypatch.setattr(transformer, "SHORT_ROW", 2 if one_by_one else WIDTH)
    monkeypatch.setattr(attention_xla, "ROW_STEP", 4)
    model = make_model(dataclasses.replace(tiny_config, **FAMILIES[family]))
    adapter, key = make_adapter(model.config), jax.random.key(seed)
    own = key if mode == "shared" else row_keys(key, jnp.arange(4))
    dropout = None if mode == "off" else Dropout(own, RATE, mode)
    real = np.arange(WIDTH) < inputs.lengths[:, None]
    direction = rng.normal(size=(4, WIDTH, model.config.hidden_size)) * real[..., None]

    def states_and_gradient(capacity: int | None) -> tuple[np.ndarray, Factors]:
        def loss(weights: Factors) -> tuple[jax.Array, jax.Array]:
            hidden = hidden_states(model, Adapter(weights, adapter.scale), inputs, dropout, capacity)
            return jnp.sum(hidden * direction), hidden

        gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(adapter.weights)
        return np.asarray(hidden), gradient

    want, wanted = states_and_gradient(None)
    got, found = states_and_gradient(int(inputs.lengths.sum()) + 3)
    np.testing.assert_allclose(got[real], want[real], atol=1e-4)
    assert np.isfinite(got).all()
    chex.assert_trees_all_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_decoder_in_a_line_of_bfloat16_is_close(
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tiny_config: TransformerConfig,
    inputs: SequenceInputs,
) -> None:
    """States and the adapter's gradient, as far from those in float32 as rows in bfloat16 are, or little more."""
    monkeypatch.setattr(transformer, "SHORT_ROW", 2)
    monkeypatch.setattr(attention_xla, "ROW_STEP", 4)
    wide, adapter = make_model(tiny_config), make_adapter(tiny_config)
    decoder = Decoder(dataclasses.replace(tiny_config, dtype="bfloat16"))
    narrow = LanguageModel(decoder, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wide.params))
    real = np.arange(WIDTH) < inputs.lengths[:, None]
    direction = rng.normal(size=(4, WIDTH, tiny_config.hidden_size)) * real[..., None]

    def states_and_gradient(model: LanguageModel, capacity: int | None) -> tuple[np.ndarray, np.ndarray]:
        def loss(weights: Factors) -> tuple[jax.Array, jax.Array]:
            hidden = hidden_states(model, Adapter(weights, adapter.scale), inputs, None, capacity).astype(jnp.float32)
            return jnp.sum(hidden * direction), hidden

        gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(adapter.weights)
        leaves = jax.tree.leaves(gradient)
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
        return np.asarray(hidden)[real], np.concatenate([np.ravel(leaf) for leaf in leaves])

    capacity = int(inputs.lengths.sum()) + 3
    want, in_rows, got = (states_and_gradient(*how) for how in ((wide, None), (narrow, None), (narrow, capacity)))
    for exact, rows, packed in zip(want, in_rows, got, strict=True):
        off, also_off = (np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (packed, rows))
        assert 0 < off < max(1.5 * also_off, 0.05)
