"""Greedy decoding against a loop that runs the whole sequence again for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.inference.generation import generate

WIDTH, LENGTHS = 6, (5, 1, 3, 4, 2)
NEVER = 99
run = jax.jit(generate, static_argnames=("width", "eos_id"))


def draw_prompts(seed: int) -> np.ndarray:
    """Right-padded prompts `5×5` of different lengths; what stands in the padding must not matter."""
    return np.random.default_rng(seed).integers(0, 17, (5, 5)).astype(np.int32)


def naive(numpy_logits, model, adapter, prompt, eos_id: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + WIDTH and eos_id not in tokens[len(prompt) :]:
        tokens.append(int(numpy_logits(model, adapter, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def decode(model, adapter, prompts, *, eos_id: int = NEVER, row_mask=None):
    mask = np.ones(5, bool) if row_mask is None else np.asarray(row_mask)
    return map(np.asarray, run(model, adapter, prompts, np.array(LENGTHS), width=WIDTH, eos_id=eos_id, row_mask=mask))


@pytest.mark.parametrize("adapted", [False, True])
def test_tokens_are_those_of_the_naive_loop(small_model, small_adapter, numpy_logits, adapted):
    adapter, prompts = small_adapter if adapted else None, draw_prompts(1)
    want = [naive(numpy_logits, small_model, adapter, prompts[i, :n], NEVER) for i, n in enumerate(LENGTHS)]
    assert len({tuple(row) for row in want}) > 1
    tokens, lengths = decode(small_model, adapter, prompts)
    np.testing.assert_array_equal(tokens, want)
    np.testing.assert_array_equal(lengths, WIDTH)


def test_rows_stop_at_end_of_sequence_which_they_include(small_model, small_adapter, numpy_logits):
    prompts = draw_prompts(2)
    free = [
        naive(numpy_logits, small_model, small_adapter, p[:n], NEVER) for p, n in zip(prompts, LENGTHS, strict=True)
    ]
    # A token that ends at least one row before the last step, and at least one row not at all.
    early = [token for row in free for token in row[:-1]]
    eos_id = next(token for token in early if any(token not in row for row in free))
    tokens, lengths = decode(small_model, small_adapter, prompts, eos_id=eos_id)
    for row, (prompt, length) in enumerate(zip(prompts, LENGTHS, strict=True)):
        want = naive(numpy_logits, small_model, small_adapter, prompt[:length], eos_id)
        assert lengths[row] == len(want)
        assert tokens[row].tolist() == want + [0] * (WIDTH - len(want))
        assert (want[-1] == eos_id) == (eos_id in free[row])
    assert (lengths < WIDTH).any()
    assert (lengths == WIDTH).any()


def test_rows_stop_at_whichever_end_comes_first(small_model, small_adapter, numpy_logits):
    prompts = draw_prompts(8)
    free = [
        naive(numpy_logits, small_model, small_adapter, p[:n], NEVER) for p, n in zip(prompts, LENGTHS, strict=True)
    ]
    ends = (free[0][0], free[1][2], NEVER)
    tokens, lengths = decode(small_model, small_adapter, prompts, eos_id=ends)
    for row, want in enumerate(free):
        stop = next((place for place, token in enumerate(want) if token in ends), WIDTH - 1) + 1
        assert lengths[row] == stop
        assert tokens[row].tolist() == want[:stop] + [0] * (WIDTH - stop)
    assert lengths[0] == 1
    assert lengths[1] <= 3
    traced = jax.jit(
        lambda eos: generate(small_model, small_adapter, prompts, np.array(LENGTHS), width=WIDTH, eos_id=eos)
    )
    for given in (ends[0], jnp.asarray(ends)):
        one = ends if given is not ends[0] else ends[0]
        for got, want in zip(traced(given), decode(small_model, small_adapter, prompts, eos_id=one), strict=True):
            np.testing.assert_array_equal(got, want)


def test_end_of_sequence_may_come_first(small_model, small_adapter, numpy_logits):
    prompts = draw_prompts(3)
    eos_id = naive(numpy_logits, small_model, small_adapter, prompts[1, : LENGTHS[1]], NEVER)[0]
    tokens, lengths = decode(small_model, small_adapter, prompts, eos_id=eos_id)
    assert lengths[1] == 1
    assert tokens[1].tolist() == [eos_id] + [0] * (WIDTH - 1)


def test_padding_of_prompts_and_padding_rows_do_not_matter(small_model, small_adapter):
    prompts = draw_prompts(4)
    tokens, lengths = decode(small_model, small_adapter, prompts)
    other = np.where(np.arange(5) < np.array(LENGTHS)[:, None], prompts, draw_prompts(5))
    assert (other != prompts).any()
    np.testing.assert_array_equal(next(decode(small_model, small_adapter, other)), tokens)

    real = np.array([True, False, True, True, False])
    kept, kept_lengths = decode(small_model, small_adapter, prompts, row_mask=real)
    np.testing.assert_array_equal(kept[real], tokens[real])
    np.testing.assert_array_equal(kept_lengths, np.where(real, lengths, 0))
    assert (kept[~real] == 0).all()


def test_padding_rows_are_not_waited_for(small_model, small_adapter, numpy_logits):
    """The loop ends with the last real row: nothing is decoded where there is none."""
    prompts, steps = draw_prompts(6), []
    eos_id = naive(numpy_logits, small_model, small_adapter, prompts[0], NEVER)[0]
    one_real = jnp.arange(5) == 0

    class Counting:
        """The decoder, telling how many tokens it is given at each call."""

        def __init__(self, decoder):
            self.decoder, self.config = decoder, decoder.config

        def apply(self, variables, tokens, *rest):
            jax.debug.callback(lambda: steps.append(tokens.shape[1]))
            return self.decoder.apply(variables, tokens, *rest)

    counted = small_model.replace(decoder=Counting(small_model.decoder))
    _, lengths = run(counted, small_adapter, prompts, np.array(LENGTHS), width=WIDTH, eos_id=eos_id, row_mask=one_real)
    jax.effects_barrier()
    assert lengths.tolist() == [1, 0, 0, 0, 0]
    assert steps == [5, 1]


def test_adapter_changes_what_is_generated(small_model, small_adapter):
    prompts = draw_prompts(7)
    assert (next(decode(small_model, None, prompts)) != next(decode(small_model, small_adapter, prompts))).any()
