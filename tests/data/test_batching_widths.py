"""The choice of widths, against all choices there are, and on the lengths of a real dataset."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.data.batching import batch_maxima, choose_widths, epoch_order, pack, padding_share, sequence_batches
from star_jax.data.encoding import Row

LENGTHS_FILE = Path(__file__).parents[2] / "experiments" / "benchmarks" / "gsm8k_lengths.json"

histograms = st.lists(st.integers(1, 120), min_size=1, max_size=60)


def padding(lengths, widths) -> int:
    return sum(min(width for width in widths if width >= length) - length for length in lengths)


def least_padding(lengths, most: int, multiple: int, widest: int) -> int:
    """Over every set of at most `most` multiples, empty or not, of which the largest is `widest`."""
    others = range(multiple, widest, multiple)
    return min(
        padding(lengths, (*chosen, widest)) for count in range(most) for chosen in itertools.combinations(others, count)
    )


def round_up(length: int, multiple: int) -> int:
    while length % multiple:
        length += 1
    return length


@pytest.fixture(scope="module")
def gsm8k() -> list[int]:
    """Tokens of prompts with responses."""
    return [prompt + response for prompt, response in json.loads(LENGTHS_FILE.read_text())["lengths"]]


@given(histograms, st.integers(1, 4), st.sampled_from([8, 16, 32]), st.none() | st.integers(1, 150))
@settings(max_examples=150, deadline=None)
def test_no_other_widths_pad_less(lengths, most, multiple, limit):
    widths = choose_widths(lengths, most, limit=limit, multiple=multiple)
    widest = round_up(max(*lengths, limit or 0, 1), multiple)
    assert 1 <= len(widths) <= most
    assert list(widths) == sorted(set(widths))
    assert all(width % multiple == 0 for width in widths)
    assert widths[-1] == widest
    assert all(isinstance(width, int) for width in widths)
    assert padding(lengths, widths) == least_padding(lengths, most, multiple, widest)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_no_other_widths_pad_less_where_every_length_is_a_width(lengths, most):
    widths = choose_widths(lengths, most, multiple=1)
    assert padding(lengths, widths) == least_padding(lengths, most, 1, max(lengths))


@given(histograms, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_the_order_of_the_lengths_does_not_matter(lengths, most, random):
    widths = choose_widths(lengths, most)
    random.shuffle(lengths)
    assert choose_widths(np.array(lengths, np.int32), most) == widths


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=200), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_evenly_spaced_widths_never_pad_less(lengths, most):
    widest = round_up(max(lengths), 16)
    even = {round_up(-(-widest * part // most), 16) for part in range(1, most + 1)}
    assert padding(lengths, choose_widths(lengths, most)) <= padding(lengths, even)


def test_a_limit_fits_and_counts():
    assert choose_widths([], 3, limit=33) == (48,)
    assert choose_widths(np.array([], np.int32), 1, limit=32) == (32,)
    assert choose_widths([5, 20], 1, limit=100) == (112,)
    assert choose_widths([5, 20, 20], 2, limit=100) == (32, 112)
    assert choose_widths([5, 20], 9, limit=100) == (16, 32, 112)
    assert choose_widths([5, 40], 9, limit=20) == (16, 48)  # A limit that fits anyway takes no width.
    assert choose_widths([5, 40], 9, limit=40) == (16, 48)


def test_no_width_is_more_than_is_of_use():
    assert choose_widths([3, 16, 16, 30], 9) == (16, 32)
    assert choose_widths([7] * 20, 4, multiple=8) == (8,)


def test_what_no_widths_can_be_chosen_for_is_refused():
    with pytest.raises(ValueError, match="at most 0 widths that are multiples of 16: both must be at least 1"):
        choose_widths([5], 0)
    with pytest.raises(ValueError, match="at most 2 widths that are multiples of 0: both must be at least 1"):
        choose_widths([5], 2, multiple=0)
    with pytest.raises(ValueError, match="no lengths and no limit: there is nothing to choose widths for"):
        choose_widths([], 2)
    for lengths, limit in (([5, 0], None), ([5], 0)):
        with pytest.raises(ValueError, match="a length of 0 tokens: lengths and limit must be at least 1"):
            choose_widths(lengths, 2, limit=limit)


def test_thousands_of_distinct_lengths():
    """Of evenly spread lengths the best widths are evenly spaced."""
    assert choose_widths(np.arange(1, 32001), 4) == (8000, 16000, 24000, 32000)


def test_the_longest_of_each_batch():
    lengths = [3, 9, 4, 4, 7, 1, 8]
    assert batch_maxima(lengths, 3).tolist() == [9, 4, 1]
    assert batch_maxima(np.array(lengths), 1).tolist() == sorted(lengths, reverse=True)
    assert batch_maxima([], 3).tolist() == []
    rows = [Row(np.ones(length, np.int32), 1) for length in lengths]
    assert [batch.lengths.max() for batch in sequence_batches(rows, (16,), 2)] == batch_maxima(lengths, 2).tolist()


def test_padding_of_a_real_pool(gsm8k):
    """Batches of 16 of 512 rows: the least padding that any four widths leave, and under a fifth of the slots.

    A width for every multiple of 16 would leave 6 %, and four evenly spaced ones a quarter.
    """
    rows = [Row(np.ones(length, np.int32), 1) for length in gsm8k]
    maxima = [max(gsm8k)]
    for start in range(16, len(gsm8k), 16):
        maxima.append(sorted(gsm8k)[len(gsm8k) - 1 - start])
    widest = round_up(max(gsm8k), 16)
    assert len(gsm8k) % 16 == 0
    slots = 16 * (sum(maxima) + least_padding(maxima, 4, 16, widest))
    widths = choose_widths(batch_maxima(gsm8k, 16), 4, limit=max(gsm8k))
    share = padding_share(sequence_batches(rows, widths, 16))
    assert share == pytest.approx(1 - sum(gsm8k) / slots)
    assert share < 0.18
    every = padding_share(sequence_batches(rows, range(16, widest + 1, 16), 16))
    even = padding_share(sequence_batches(rows, [widest * part // 4 for part in range(1, 5)], 16))
    assert (round(every, 2), round(even, 2)) == (0.06, 0.24)


@pytest.mark.parametrize("count", [50, 100])
def test_padding_of_a_real_training_set(gsm8k, count):
    """Batches of 8: the longest of each batch are what to choose widths for, rather than the rows themselves."""
    rng = np.random.default_rng(count)
    lengths = rng.choice(gsm8k, count, replace=False)
    rows = [Row(np.ones(length, np.int32), 1) for length in lengths]
    order = rng.permutation(count)

    def share(widths) -> float:
        steps = epoch_order(lengths, widths, order, 8)
        return padding_share([pack([rows[i] for i in step], step, widths, 8) for step in steps])

    for most in (2, 3, 4):
        best = share(choose_widths(batch_maxima(lengths, 8), most))
        assert best <= share(choose_widths(lengths, most))
        assert best < share(choose_widths(lengths, 1))
