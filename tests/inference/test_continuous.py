"""Continuous batching against the plain loop, a prompt at a time or a batch."""

from functools import partial

import jax
import numpy as np
import pytest

from star_jax.data.batching import Shape, prompt_batches
from star_jax.inference import continuous
from star_jax.inference.continuous import Plan, write_responses
from star_jax.inference.generation import PromptBatch, Stop, generate, sample
from star_jax.inference.sampling import Decoding, Draws
from star_jax.inference.slots import Writing
from star_jax.models.dropout import row_keys

SIZE, WIDTH, SHAPES = 15, 7, (Shape(4, 6, 24), Shape(4, 3, 12))
DECODING = Decoding(3, 1.2, 0.9)


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    """Everything happens within few tokens: caches grow and come round, rows are seated and halved."""
    for name, value in {"STEPS": 2, "SEATED_AT_ONCE": 4, "FEWEST_ROWS": 1}.items():
        monkeypatch.setattr(continuous, name, value)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    return [rng.integers(0, 17, size).astype(np.int32) for size in rng.integers(1, 7, SIZE)]


@pytest.fixture(scope="module")
def padded(prompts):
    lengths = np.array([len(prompt) for prompt in prompts])
    return PromptBatch(np.stack([np.pad(prompt, (0, 6 - len(prompt))) for prompt in prompts]), lengths)


@pytest.fixture(scope="module")
def plain(small_model, small_adapter, padded):
    """All prompts as one batch, greedy, with ends that are an argument."""

    @jax.jit
    def run(ends):
        return generate(small_model, small_adapter, padded, Stop(WIDTH, ends), scored=True)

    return lambda ends: jax.device_get(run(np.array(ends)))


@pytest.fixture(scope="module")
def ends(plain):
    """Tokens that end some responses at once, some late and some not at all."""
    free = plain((99, 99)).tokens
    found = (int(free[0, 0]), int(free[1, 3]))
    lengths = plain(found).lengths
    assert len(set(lengths.tolist())) > 3
    assert {1, WIDTH} <= set(lengths.tolist())
    return found


def assert_same(found, want, order, *, samples=()):
    """Responses of the numbers in `order`, among those of all prompts."""
    at = (*samples, order)
    np.testing.assert_array_equal(found.tokens, want.tokens[at])
    np.testing.assert_array_equal(found.lengths, want.lengths[at])
    for name, part in zip(found.statistics._fields, found.statistics, strict=True):
        whole = np.asarray(getattr(want.statistics, name))[..., order, :]
        np.testing.assert_allclose(np.reshape(part, whole.shape), whole, atol=2e-5, err_msg=name)


def answers(model, prompts, plan, chosen=None):
    """Batches with their responses, real rows only."""
    for batch, found in write_responses(model, prompt_batches(prompts, SHAPES, 1, chosen), plan):
        real = batch.row_mask
        yield batch.index[real], jax.tree.map(partial(rows_of, real), found)


def rows_of(real, leaf):
    """The real rows of `K×B`, `K×B×R` or `K×1×B×R`."""
    axis = 2 if leaf.ndim == 4 else 1
    return np.compress(real, leaf, axis=axis)


@pytest.mark.parametrize("chosen", [None, [8, 2, 13, 5, 11], [4]])
def test_responses_are_those_of_the_plain_loop(small_model, small_adapter, prompts, plain, ends, chosen):
    want, seen = plain(ends), []
    for order, found in answers((small_model, small_adapter), prompts, Plan(Writing(WIDTH, ends)), chosen):
        assert_same(jax.tree.map(lambda leaf: leaf[0], found), want, order)
        seen += order.tolist()
    assert sorted(seen) == sorted(chosen or range(SIZE))


def test_drawn_responses_are_those_of_the_plain_loop(small_model, small_adapter, prompts, padded, ends):
    key = jax.random.key(5)
    draws = Draws(DECODING, row_keys(key, np.arange(SIZE)))
    want = jax.jit(lambda: sample(small_model, small_adapter, padded, Stop(WIDTH, ends), draws))()
    want = jax.device_get(want)
    assert len({row.tobytes() for one in want.tokens for row in one}) > SIZE
    plan = Plan(Writing(WIDTH, ends, DECODING), key)
    for order, found in answers((small_model, small_adapter), prompts, plan):
        assert_same(found, want, order, samples=(slice(None),))


def test_rows_are_seated_as_soon_as_others_end(small_model, small_adapter, prompts, ends, plain, monkeypatch):
    """And programs are few: one for each size of caches and of rows."""
    shapes, seated, steps = [], 0, 0

    def counted_writing(model, layers, rows, limits, **options):
        nonlocal steps
        shapes.append(rows.positions.shape)
        found = write(model, layers, rows, limits, **options)
        steps += int(found[2][0] - limits.used[0])
        return found

    def counted_seating(rows, waiting, seats, used):
        nonlocal seated
        seated += int((np.asarray(seats.taken) >= 0).sum())
        return seat(rows, waiting, seats, used)

    write, seat = continuous.write_tokens, continuous.seat
    monkeypatch.setattr(continuous, "write_tokens", counted_writing)
    monkeypatch.setattr(continuous, "seat", counted_seating)
    list(answers((small_model, small_adapter), prompts, Plan(Writing(WIDTH, ends))))
    assert seated == SIZE
    rows, slots = zip(*shapes, strict=True)
    assert list(rows) == sorted(rows, reverse=True)  # halved once nothing waits, and never before
    assert min(rows) < 4
    assert len({*shapes}) <= len(SHAPES) * continuous.SIZES + continuous.HALVINGS
    assert min(slots) < max(slots) <= 6 + WIDTH + 1
    # While prompts wait, four rows are written at every step, and afterwards no response is longer than the longest.
    lengths = plain(ends).lengths
    assert steps <= lengths.sum() / 4 + lengths.max()
