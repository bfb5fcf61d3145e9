"""Greedy decoding against a loop that runs the whole sequence again for every token."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from random_models import random_model

from star_jax.inference import generation
from star_jax.inference.generation import PromptBatch, Stop
from star_jax.inference.generation import generate as generate_batch
from star_jax.inference.scoring import TokenStatistics, score_responses
from star_jax.models.merged import merge_adapter
from star_jax.models.sequences import SequenceInputs

WIDTH, LENGTHS = 6, (5, 1, 3, 4, 2)
NEVER = 99


def generate(model, adapter, tokens, lengths, *, width, eos_id, row_mask=None, **options):
    """`generate` with everything by name, for `jit`."""
    return generate_batch(model, adapter, PromptBatch(tokens, lengths, row_mask), Stop(width, eos_id), **options)


run = jax.jit(generate, static_argnames=("capacity", "width", "scored"))


def draw_prompts(seed: int) -> np.ndarray:
    """Right-padded prompts `5×5` of different lengths; what stands in the padding must not matter."""
    return np.random.default_rng(seed).integers(0, 17, (5, 5)).astype(np.int32)


def naive(numpy_logits, model, adapter, prompt, eos_id: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + WIDTH and eos_id not in tokens[len(prompt) :]:
        tokens.append(int(numpy_logits(model, adapter, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def written(model, adapter, prompts, *, eos_id=NEVER, row_mask=None, **options):
    """The ends are an argument of the program, one for all tests."""
    mask, ends = np.ones(5, bool) if row_mask is None else np.asarray(row_mask), np.asarray(eos_id)
    return run(model, adapter, prompts, np.array(LENGTHS), width=WIDTH, eos_id=ends, row_mask=mask, **options)


def decode(*arguments, **options):
    """Tokens and lengths."""
    return map(np.asarray, written(*arguments, **options)[:2])


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
    # Tokens that are known when the program is compiled, instead of arguments of it.
    for given in (ends[0], ends):
        fixed = jax.jit(partial(generate, small_model, small_adapter, width=WIDTH, eos_id=given))
        want = decode(small_model, small_adapter, prompts, eos_id=given)
        for got, expected in zip(fixed(prompts, np.array(LENGTHS))[:2], want, strict=True):
            np.testing.assert_array_equal(got, expected)


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


@pytest.mark.parametrize("real", [[0], [], [0, 3], [0, 1, 2, 3, 4]])
def test_no_step_is_taken_that_no_row_waits_for(small_model, small_adapter, numpy_logits, monkeypatch, real):
    """The first token comes from the prompt, each other one from a step; rows that fill the batch up do not count."""
    prompts, seen = draw_prompts(6), []
    free = [
        naive(numpy_logits, small_model, small_adapter, p[:n], NEVER) for p, n in zip(prompts, LENGTHS, strict=True)
    ]
    eos_id = free[0][0]
    want = [(row.index(eos_id) + 1 if eos_id in row else WIDTH) if i in real else 0 for i, row in enumerate(free)]

    def counted(*arguments):
        jax.debug.callback(lambda: seen.append(1))
        return step(*arguments)

    step = generation.decode_step
    monkeypatch.setattr(generation, "decode_step", counted)
    fresh = jax.jit(partial(generate, width=WIDTH, eos_id=eos_id))  # a function of its own, that is traced again
    _, lengths, _ = fresh(small_model, small_adapter, prompts, np.array(LENGTHS), row_mask=np.isin(np.arange(5), real))
    jax.effects_barrier()
    assert lengths.tolist() == want
    assert len(seen) == max(*want, 1) - 1


def test_adapter_changes_what_is_generated(small_model, small_adapter):
    prompts = draw_prompts(7)
    assert (next(decode(small_model, None, prompts)) != next(decode(small_model, small_adapter, prompts))).any()


def test_other_forms_write_the_same(small_model, small_adapter):
    """A model that holds its adapter, and prompts that are read in a line."""
    prompts = draw_prompts(9)
    want, _ = decode(small_model, small_adapter, prompts)
    model, adapter = merge_adapter(small_model, small_adapter)
    assert adapter is None
    np.testing.assert_array_equal(next(decode(model, None, prompts)), want)
    np.testing.assert_array_equal(next(decode(model, None, prompts, capacity=sum(LENGTHS) + 1)), want)


# What the model said about its tokens.


def read_again(model, adapter, prompts, tokens, lengths) -> tuple[list[list[int]], TokenStatistics]:
    """The positions of each row that predict a token of its response, and the statistics of all `1×B×T`."""
    rows = np.zeros((5, 5 + WIDTH), np.int32)
    for row, (prompt, response) in enumerate(zip(LENGTHS, lengths, strict=True)):
        rows[row, :prompt], rows[row, prompt : prompt + response] = prompts[row, :prompt], tokens[row, :response]
    inputs = SequenceInputs(rows, np.array(LENGTHS), np.array(LENGTHS) + lengths)
    statistics, mask = jax.jit(score_responses)(model, adapter, inputs)
    return [np.flatnonzero(row).tolist() for row in np.asarray(mask)], statistics


@pytest.mark.parametrize("kind", ["base", "adapted", "folded", "capped and tied"])
def test_statistics_are_those_of_reading_the_response(small_model, small_adapter, kind):
    """Of every token up to the end of sequence, which some rows reach, and of rows that are real."""
    prompts, real, model = draw_prompts(10), np.array([True, True, False, True, True]), small_model
    if kind == "capped and tied":
        config = dataclasses.replace(model.config, logit_softcap=2.5, tie_word_embeddings=True)
        model = random_model(np.random.default_rng(2), config)
    adapter = None if kind == "base" else small_adapter
    writer = merge_adapter(model, adapter) if kind == "folded" else (model, adapter)
    free, _ = decode(*writer, prompts)
    early = [int(token) for row in free[real] for token in row[1:-1]]
    eos_id = next(token for token in early if any(token not in row for row in free[real]))

    plain = written(*writer, prompts, eos_id=eos_id, row_mask=real)
    assert plain.statistics is None
    tokens, lengths, statistics = written(*writer, prompts, eos_id=eos_id, row_mask=real, scored=True)
    np.testing.assert_array_equal(tokens, plain.tokens)
    np.testing.assert_array_equal(lengths, plain.lengths)
    lengths = np.asarray(lengths)
    assert len(set(lengths[real])) > 1
    assert lengths[2] == 0

    places, want = read_again(model, adapter, prompts, np.asarray(tokens), lengths)
    assert [len(row) for row in places] == lengths.tolist()
    for name in TokenStatistics._fields:
        got = np.asarray(getattr(statistics, name))
        assert got.shape == ((5, WIDTH) if name == "mixture_entropy" else (1, 5, WIDTH))
        for row, length in enumerate(lengths):
            there = np.asarray(getattr(want, name))[..., row, places[row]]
            np.testing.assert_allclose(got[..., row, :length], there, rtol=1e-4, atol=2e-5, err_msg=name)
            assert (got[..., row, length:] == 0).all(), name
    # Greedy: each token is the most probable one.
    np.testing.assert_allclose(statistics.log_prob, statistics.max_log_prob, atol=1e-6)
