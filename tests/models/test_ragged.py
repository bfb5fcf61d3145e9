"""Rows in a line against loops over their tokens, and decoders in a line against decoders over rows."""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES

from star_jax.models import attention, transformer
from star_jax.models.lora import Adapter, Dropout, Factors, row_keys
from star_jax.models.ragged import line_up, to_line, to_rows
from star_jax.models.sequences import SequenceInputs, hidden_states
from star_jax.models.transformer import LanguageModel, TransformerConfig

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
    places, slots = places_of(lengths), sum(lengths) + spare
    line = jax.jit(line_up, static_argnums=(1, 2))(jnp.asarray(lengths), WIDTH, slots)
    assert line.filled.tolist() == [number < len(places) for number in range(slots)]
    for number, (row, place) in enumerate(places):
        assert (int(line.rows[number]), int(line.positions[number])) == (row, place)
        assert int(line.slots[row, place]) == number
    assert line.real.tolist() == [[place < length for place in range(WIDTH)] for length in lengths]
    # What holds nothing points at something that is there.
    for pointers, end in ((line.rows, len(lengths)), (line.positions, WIDTH), (line.slots, slots)):
        assert (pointers >= 0).all()
        assert (pointers < end).all()


@pytest.mark.parametrize("features", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", LENGTHS)
def test_copies_there_and_back(rng: np.random.Generator, name: str, features: tuple[int, ...]) -> None:
    lengths = LENGTHS[name]
    places, slots = places_of(lengths), sum(lengths) + 2
    line = line_up(jnp.asarray(lengths), WIDTH, slots)
    rows = rng.normal(size=(len(lengths), WIDTH, *features)).astype(np.float32)
    got, want = to_line(jnp.asarray(rows), line), np.zeros((slots, *features), np.float32)
    for number, place in enumerate(places):
        want[number] = rows[place]
    np.testing.assert_array_equal(got, want)
    back = np.where(np.asarray(line.real).reshape(*line.real.shape, *(1,) * len(features)), rows, 0)
    np.testing.assert_array_equal(to_rows(got, line), back)

    # Gradients, against those that JAX makes of a gather.
    along, across = (rng.normal(size=shape).astype(np.float32) for shape in ((slots, *features), rows.shape))
    index = tuple(np.asarray(places, int).reshape(-1, 2).T)
    of_line = jax.grad(lambda x: jnp.sum(to_line(x, line) * along))(jnp.asarray(rows))
    by_gather = jax.grad(lambda x: jnp.sum(x[index] * along[: len(places)]))(jnp.asarray(rows))
    np.testing.assert_array_equal(of_line, by_gather)
    of_rows = jax.grad(lambda x: jnp.sum(to_rows(x, line) * across))(jnp.asarray(want))
    by_scatter = jax.grad(lambda x: jnp.sum(jnp.zeros(rows.shape).at[index].set(x[: len(places)]) * across))(
        jnp.asarray(want)
    )
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
    monkeypatch.setattr(attention, "ROW_STEP", 4)
    model = make_model(dataclasses.replace(tiny_config, **FAMILIES[family]))
    adapter, key = make_adapter(model.config), jax.random.key(seed)
    own = key if mode == "shared" else row_keys(key, jnp.arange(4))
    dropout = None if mode == "off" else Dropout(own, RATE, mode)
    real = np.arange(WIDTH) < inputs.lengths[:, None]
    direction = rng.normal(size=(4, WIDTH, model.config.hidden_size)) * real[..., None]

    def states_and_gradient(slots: int | None) -> tuple[jax.Array, Factors]:
        def loss(weights: Factors) -> tuple[jax.Array, jax.Array]:
            hidden = hidden_states(model, Adapter(weights, adapter.scale), inputs, dropout, slots)
            return jnp.sum(hidden * direction), hidden

        gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(adapter.weights)
        return hidden, gradient

    want, wanted = states_and_gradient(None)
    got, found = states_and_gradient(int(inputs.lengths.sum()) + 3)
    np.testing.assert_allclose(got[real], want[real], atol=1e-4)
    assert np.isfinite(got).all()
    chex.assert_trees_all_close(found, wanted, rtol=1e-3, atol=1e-4)
