"""Where responses lie behind their prompts, against plain loops over rows and tokens."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.dropout import Dropout
from star_jax.models.lm_head import logits, output_head
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import LanguageModel

WIDTH, RATE = 11, 0.3
Parts = tuple[list[list[int]], list[list[int]]]


@pytest.fixture
def parts(rng: np.random.Generator, tiny_model: LanguageModel) -> Parts:
    """Prompts and responses of random lengths; the longest and the shortest of both kinds occur."""
    vocabulary = tiny_model.config.vocab_size

    def draw(lengths: list[int]) -> list[list[int]]:
        return [rng.integers(1, vocabulary, length).tolist() for length in lengths]

    return draw([6, 1, 6, int(rng.integers(2, 6))]), draw([5, 1, 0, int(rng.integers(2, 5))])


def inputs_of(parts: Parts, width: int = WIDTH, padding: int = 7) -> SequenceInputs:
    """Arrays of the host, with rubbish in the padding."""
    rows = [prompt + response for prompt, response in zip(*parts, strict=True)]
    return SequenceInputs(
        np.asarray([row + [padding] * (width - len(row)) for row in rows], np.int32),
        np.asarray([len(prompt) for prompt in parts[0]], np.int32),
        np.asarray([len(row) for row in rows], np.int32),
    )


@pytest.mark.parametrize("width", [WIDTH, 20])
def test_targets_under_the_mask_are_the_responses(parts: Parts, width: int) -> None:
    inputs = inputs_of(parts, width)
    mask, targets = (np.asarray(jax.jit(function)(inputs)) for function in (response_mask, next_tokens))
    assert mask.shape == targets.shape == (4, width)
    assert mask.dtype == jnp.bool_
    assert targets.dtype == jnp.int32
    for row, (prompt, response) in enumerate(zip(*parts, strict=True)):
        first = len(prompt) - 1
        assert np.flatnonzero(mask[row]).tolist() == list(range(first, first + len(response)))
        assert targets[row][mask[row]].tolist() == response
        assert targets[row].tolist() == [*inputs.tokens[row, 1:], 0]


def test_rows_that_only_fill_a_batch_up_have_no_response(parts: Parts) -> None:
    """They have no token, or one of a prompt."""
    inputs = inputs_of(parts)
    for prompt, length in ((1, 0), (1, 1)):
        filled = inputs._replace(
            prompt_lengths=np.where(np.arange(4) == 2, prompt, inputs.prompt_lengths),
            lengths=np.where(np.arange(4) == 2, length, inputs.lengths),
        )
        assert response_mask(filled).sum(1).tolist() == [len(response) for response in parts[1]]


def test_hidden_states_are_those_that_predict_the_response(
    seed: int,
    parts: Parts,
    tiny_model: LanguageModel,
    make_adapter: Callable[..., Adapter],
    forward: Callable[..., jax.Array],
) -> None:
    inputs, adapter = inputs_of(parts), make_adapter(tiny_model.config)
    dropout = Dropout(jax.random.split(jax.random.key(seed), 4), RATE, "per_token")

    @jax.jit
    def states_and_logits(inputs: SequenceInputs) -> tuple[jax.Array, jax.Array]:
        hidden = hidden_states(tiny_model, adapter, inputs, dropout)
        return hidden, logits(hidden, output_head(tiny_model))

    hidden, got = map(np.asarray, states_and_logits(inputs))
    assert hidden.shape == (4, WIDTH, tiny_model.config.hidden_size)
    mask = np.asarray(response_mask(inputs))
    other = inputs_of(parts, padding=3)
    for row, (prompt, response) in enumerate(zip(*parts, strict=True)):
        # Each row by itself, with another padding.
        alone = Dropout(dropout.keys[row : row + 1], RATE, "per_token")
        want = forward(tiny_model, adapter, other.tokens[row : row + 1], other.lengths[row : row + 1], alone)[0]
        for number in range(len(response)):
            np.testing.assert_allclose(got[row][mask[row]][number], want[len(prompt) + number - 1], atol=1e-4)


def test_hidden_states_do_not_see_the_token_they_predict(
    parts: Parts, tiny_model: LanguageModel, rng: np.random.Generator
) -> None:
    inputs = inputs_of(parts)
    last = inputs.lengths - 1
    changed = inputs.tokens.copy()
    changed[np.arange(4), last] = (changed[np.arange(4), last] + rng.integers(1, 50)) % tiny_model.config.vocab_size
    states = jax.jit(partial(hidden_states, dropout=None))
    mask = np.asarray(response_mask(inputs))
    want, got = (states(tiny_model, None, x) for x in (inputs, inputs._replace(tokens=changed)))
    np.testing.assert_array_equal(np.asarray(got)[mask], np.asarray(want)[mask])
    assert (np.asarray(got) != np.asarray(want)).any()
