"""Where responses lie behind their prompts, against plain loops over rows and tokens."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.head import logits, output_head
from star_jax.models.lora import Adapter, Dropout
from star_jax.models.sequences import (
    SequenceInputs,
    append_responses,
    response_hidden,
    response_mask,
    response_targets,
)
from star_jax.models.transformer import LanguageModel

WIDTH, RATE = 5, 0.3
Parts = tuple[list[list[int]], list[list[int]]]


@pytest.fixture
def parts(rng: np.random.Generator, tiny_model: LanguageModel) -> Parts:
    """Prompts and responses of random lengths; the longest and the shortest of both kinds occur."""
    vocabulary = tiny_model.config.vocab_size

    def draw(lengths: list[int]) -> list[list[int]]:
        return [rng.integers(1, vocabulary, length).tolist() for length in lengths]

    return draw([6, 1, 6, int(rng.integers(2, 6))]), draw([WIDTH, 1, 0, int(rng.integers(2, WIDTH))])


def padded(rows: list[list[int]], width: int) -> tuple[jax.Array, jax.Array]:
    """Rows with rubbish in their padding, and their lengths."""
    lengths = jnp.asarray([len(row) for row in rows], jnp.int32)
    return jnp.asarray([row + [7] * (width - len(row)) for row in rows], jnp.int32), lengths


def appended(parts: Parts) -> SequenceInputs:
    return jax.jit(append_responses)(*padded(parts[0], 6), *padded(parts[1], WIDTH))


def test_responses_stand_right_behind_their_prompts(parts: Parts) -> None:
    inputs = appended(parts)
    rows = [prompt + response for prompt, response in zip(*parts, strict=True)]
    assert inputs.tokens.dtype == jnp.int32
    assert inputs.tokens.tolist() == [row + [0] * (6 + WIDTH - len(row)) for row in rows]
    assert inputs.lengths.tolist() == [len(row) for row in rows]
    assert inputs.prompt_lengths.tolist() == [len(prompt) for prompt in parts[0]]


def test_targets_under_the_mask_are_the_responses(parts: Parts) -> None:
    inputs = appended(parts)
    mask, targets = response_mask(inputs, WIDTH), response_targets(inputs, WIDTH)
    assert mask.shape == targets.shape == (4, WIDTH)
    assert mask.dtype == jnp.bool_
    for row, response in enumerate(parts[1]):
        assert mask[row].tolist() == [i < len(response) for i in range(WIDTH)]
        assert targets[row][mask[row]].tolist() == response


def test_mask_and_targets_of_a_width_beyond_the_row(parts: Parts) -> None:
    inputs = appended(parts)
    mask, targets = response_mask(inputs, 20), response_targets(inputs, 20)
    assert mask.sum(1).tolist() == [len(response) for response in parts[1]]
    assert [targets[row][mask[row]].tolist() for row in range(4)] == parts[1]


def test_hidden_states_are_those_that_predict_the_response(
    seed: int,
    parts: Parts,
    tiny_model: LanguageModel,
    make_adapter: Callable[..., Adapter],
    forward: Callable[..., jax.Array],
) -> None:
    inputs, adapter = appended(parts), make_adapter(tiny_model.config)
    dropout = Dropout(jax.random.split(jax.random.key(seed), 4), RATE, "per_token")
    hidden = jax.jit(partial(response_hidden, width=WIDTH))(tiny_model, adapter, inputs, dropout=dropout)
    assert hidden.shape == (4, WIDTH, tiny_model.config.hidden_size)
    got = logits(hidden, output_head(tiny_model))
    everywhere = forward(tiny_model, adapter, inputs.tokens, inputs.lengths, dropout)
    for row, (prompt, response) in enumerate(zip(*parts, strict=True)):
        for i in range(len(response)):
            want = everywhere[row, len(prompt) + i - 1]
            np.testing.assert_allclose(got[row, i], want, atol=1e-5)


def test_hidden_states_do_not_see_the_token_they_predict(
    parts: Parts, tiny_model: LanguageModel, rng: np.random.Generator
) -> None:
    inputs = appended(parts)
    last = np.asarray(inputs.lengths) - 1
    changed = np.asarray(inputs.tokens).copy()
    changed[np.arange(4), last] = (changed[np.arange(4), last] + rng.integers(1, 50)) % tiny_model.config.vocab_size
    states = jax.jit(partial(response_hidden, width=WIDTH, dropout=None))
    mask = np.asarray(response_mask(inputs, WIDTH))
    want, got = (states(tiny_model, None, x) for x in (inputs, inputs._replace(tokens=jnp.asarray(changed))))
    np.testing.assert_array_equal(np.asarray(got)[mask], np.asarray(want)[mask])
