"""The choice of shapes, against all choices there are, on rows to come, and on the lengths of a real dataset."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.acquisition import pools
from star_jax.acquisition.pools import BatchSizes, candidate_pool, choose_shapes
from star_jax.config import TrainingConfig
from star_jax.data.batching import Batch, Shape, grouped_batches, make_batch, sequence_batches
from star_jax.data.bucketing import Shapes, budget_shapes, choose_sizes, prompt_shapes, random_steps, step_shapes
from star_jax.data.tokenization import TokenizedExample
from star_jax.training import trainer

LENGTHS_FILE = Path(__file__).parents[2] / "experiments" / "benchmarks" / "gsm8k_lengths.json"

histograms = st.lists(st.integers(1, 120), min_size=1, max_size=60)


def padding(lengths, sizes) -> int:
    return sum(min(size for size in sizes if size >= length) - length for length in lengths)


def least_padding(lengths, most: int, multiple: int, largest: int) -> int:
    """Over every set of at most `most` multiples, empty or not, of which the largest is `largest`."""
    others = range(multiple, largest, multiple)
    return min(
        padding(lengths, (*chosen, largest))
        for count in range(most)
        for chosen in itertools.combinations(others, count)
    )


def round_up(length: int, multiple: int) -> int:
    while length % multiple:
        length += 1
    return length


def rows_of(lengths) -> list[TokenizedExample]:
    return [TokenizedExample(np.ones(length, np.int32), 1) for length in lengths]


def tokens_of(batches: Sequence[Batch]) -> int:
    return sum(int(batch.lengths[batch.row_mask].sum()) for batch in batches)


@pytest.fixture(scope="module")
def gsm8k() -> list[list[int]]:
    """Tokens of each prompt and of its response."""
    return json.loads(LENGTHS_FILE.read_text())["lengths"]


# Sizes


@given(histograms, st.integers(1, 4), st.sampled_from([8, 16, 32]))
@settings(max_examples=120, deadline=None)
def test_no_other_sizes_pad_less(lengths, most, multiple):
    sizes = choose_sizes(lengths, most, multiple=multiple)
    largest = round_up(max(lengths), multiple)
    assert 1 <= len(sizes) <= most
    assert list(sizes) == sorted(set(sizes))
    assert all(size % multiple == 0 for size in sizes)
    assert sizes[-1] == largest
    assert all(isinstance(size, int) for size in sizes)
    assert padding(lengths, sizes) == least_padding(lengths, most, multiple, largest)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_no_other_sizes_pad_less_where_every_length_is_a_size(lengths, most):
    sizes = choose_sizes(lengths, most, multiple=1)
    assert padding(lengths, sizes) == least_padding(lengths, most, 1, max(lengths))


@given(histograms, st.integers(1, 6), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_lengths_does_not_matter(lengths, most, random):
    def choices(lengths):
        return (
            choose_sizes(np.array(lengths, np.int32), most),
            prompt_shapes(lengths, 5, most),
            budget_shapes(lengths, 5, most, 150),
        )

    chosen = choices(lengths)
    assert choices(lengths) == chosen
    random.shuffle(lengths)
    assert choices(lengths) == chosen


def test_no_size_is_more_than_is_of_use():
    assert choose_sizes([3, 16, 16, 30], 9) == (16, 32)
    assert choose_sizes([7] * 20, 4, multiple=8) == (8,)


def test_what_no_sizes_can_be_chosen_for_is_refused():
    with pytest.raises(ValueError, match="at most 0 sizes that are multiples of 16: both must be at least 1"):
        choose_sizes([5], 0)
    with pytest.raises(ValueError, match="at most 2 sizes that are multiples of 0: both must be at least 1"):
        choose_sizes([5], 2, multiple=0)
    with pytest.raises(ValueError, match="no lengths: there is nothing to choose sizes for"):
        choose_sizes([], 2)
    with pytest.raises(ValueError, match="a length of 0 tokens: lengths must be at least 1"):
        choose_sizes([5, 0], 2)


def test_thousands_of_distinct_lengths():
    """Of evenly spread lengths the best sizes are evenly spaced."""
    assert choose_sizes(np.arange(1, 32001), 4) == (8000, 16000, 24000, 32000)


# Shapes


@given(histograms, st.integers(1, 20), st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=120, deadline=None)
def test_prompts_are_batched_in_full(lengths, rows, most, devices):
    shapes = prompt_shapes(lengths, rows, most, devices)
    assert 1 <= len(set(shapes)) == len(shapes) <= most
    share = min(rows, -(-len(lengths) // devices))
    assert all(shape.rows == share for shape in shapes)
    batches = list(sequence_batches(rows_of(lengths), shapes, devices))
    counts = [batch.row_mask.reshape(devices, -1).sum(axis=1) for batch in batches]
    assert all((count == share).all() for count in counts[:-1])
    assert counts[-1].max() - counts[-1].min() <= 1 or counts[-1].max() == share
    assert sum(count.sum() for count in counts) == len(lengths)


def greedy(lengths: Sequence[int], capacity: int) -> int:
    """Batches of neighbours in length, of as many rows as `capacity` hold."""
    batches, room = 0, 0
    for length in sorted(lengths, reverse=True):
        if length > room:
            batches, room = batches + 1, capacity
        room -= length
    return batches


@given(histograms, st.integers(1, 20), st.integers(1, 3), st.integers(0, 200))
@settings(max_examples=120, deadline=None)
def test_a_budget_is_the_least_that_makes_batches_of_so_many_rows(lengths, rows, most, more):
    longest, count = max(lengths) + more, -(-len(lengths) // rows)
    shapes = budget_shapes(lengths, rows, most, longest)
    assert 1 <= len(set(shapes)) == len(shapes) <= most + 1
    budgets = (capacity for capacity in itertools.count(longest) if capacity < 64 or capacity % 64 == 0)
    least = next(capacity for capacity in budgets if greedy(lengths, capacity) <= count)
    assert {shape.capacity for shape in shapes} == {least}
    assert len(list(sequence_batches(rows_of(lengths), shapes))) == greedy(lengths, least)


def padded(batches: list[list[int]], chosen: Sequence[tuple[int, int]]) -> int:
    """Rows × width of all batches, each in the first of the (rows, width) that is wide enough."""
    return sum(next(rows * width for rows, width in chosen if width >= batch[0]) for batch in batches)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 6), st.integers(1, 3))
@settings(max_examples=120, deadline=None)
def test_no_other_shapes_of_a_budget_hold_less(lengths, rows, most):
    """Over every choice of widths; a shape has the rows of its fullest batch, and of a line that they fill."""
    shapes = budget_shapes(lengths, rows, most, max(lengths))
    batches = [
        [int(size) for size in batch.lengths[batch.row_mask]] for batch in sequence_batches(rows_of(lengths), shapes)
    ]
    widths = sorted({batch[0] for batch in batches})
    least = None
    for count in range(1, most + 1):
        for others in itertools.combinations(widths[:-1], count - 1):
            chosen, low = [], 0
            for width in (*others, widths[-1]):
                within = [batch for batch in batches if low < batch[0] <= width]
                fullest = max(max(len(batch), shapes[0].capacity // batch[0]) for batch in within)
                chosen.append((fullest, width))
                low = width
            least = min(least or padded(batches, chosen), padded(batches, chosen))
    assert padded(batches, [(shape.rows, shape.width) for shape in shapes]) == least


limits = st.integers(1, 6) | st.integers(1, 300)
"""Tokens of the longest row that may come."""


@st.composite
def known_and_later(draw):
    """Lengths that are known, maybe none; others, like them or not; and a length that none is above."""
    longest = draw(limits)
    known, later = (
        draw(st.lists(st.integers(1, draw(st.integers(1, longest))), min_size=least, max_size=40)) for least in (0, 1)
    )
    return known, later, longest


@given(known_and_later(), st.integers(1, 20), st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=120, deadline=None)
def test_a_budget_holds_whatever_comes(lengths, rows, most, devices):
    known, later, longest = lengths
    shapes = budget_shapes(known, rows, most, longest, devices)
    assert 1 <= len(shapes) <= most + 1
    # No later batch is left with room because a shape has too few rows for what its line holds.
    assert all(shape.rows >= shape.capacity // shape.width for shape in shapes)
    for some in (known, later, [longest], [1], [*later, longest]):
        batches = list(sequence_batches(rows_of(some), shapes, devices))
        assert tokens_of(batches) == sum(some)


@given(known_and_later(), st.integers(1, 20), st.integers(1, 3), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_steps_hold_whatever_comes(lengths, rows, most, devices):
    known, later, longest = lengths
    steps = random_steps(known, rows)[:20]
    shapes = step_shapes(steps, rows, most, longest, devices)
    assert 1 <= len(set(shapes)) == len(shapes) <= most + 1
    assert all(shape.rows == -(-rows // devices) for shape in shapes)
    for step in [*steps, later[:rows], [longest] * rows, [longest], [1], [1] * rows]:
        batch = make_batch(rows_of(step), range(len(step)), shapes, devices)
        assert tokens_of([batch]) == sum(step)
    for step in steps:  # What is like the steps before needs no shape of rows that are all of the longest.
        held = make_batch(rows_of(step), range(rows), shapes[:most], devices)
        fullest = held.lengths.reshape(devices, -1).sum(axis=1).max()
        assert held.capacity == min(shape.capacity for shape in shapes if shape.capacity >= fullest)


def test_random_steps_are_the_same_for_the_same_lengths():
    lengths = [3, 8, 21]
    steps = random_steps(lengths, 5)
    assert random_steps(np.array(lengths), 5) == steps
    assert all(len(step) == 5 and set(step) <= set(lengths) for step in steps)
    drawn = list(itertools.chain.from_iterable(steps))
    for length in lengths:
        assert drawn.count(length) / len(drawn) == pytest.approx(1 / 3, abs=0.06)
    assert random_steps([], 5) == random_steps(lengths, 0) == []


def test_nothing_known():
    assert prompt_shapes([], 16, 2) == ()
    assert budget_shapes([], 16, 2, 70) == (Shape(16, 70, 1120),)
    assert step_shapes([], 8, 3, 70) == (Shape(8, 70, 560),)
    shapes = choose_shapes([7], [], 12, BatchSizes(4, 3))
    assert shapes == Shapes((Shape(1, 7, 7),), (Shape(3, 12, 36),), ())


def test_a_last_batch_of_few_rows_does_not_hold_later_ones_down():
    """Three rows of 896 tokens a batch, and one of 10 tokens that is left over and has a shape of its own."""
    shapes = budget_shapes([896] * 9 + [10], 3, 2, 896)
    assert shapes[0].rows >= shapes[0].capacity // shapes[0].width > 50
    assert len(list(sequence_batches(rows_of([10] * 100), shapes))) <= 2


# As the trainer and the pool use them


@pytest.mark.parametrize("devices", range(1, 9))
@pytest.mark.parametrize(("batch_size", "replay_rows"), [(1, 0), (3, 0), (8, 0), (8, 3)])
def test_training_steps_on_any_number_of_devices(monkeypatch, devices, batch_size, replay_rows):
    monkeypatch.setattr(trainer, "data_mesh", lambda: SimpleNamespace(size=devices))
    replay = "rows.jsonl" if replay_rows else None
    config = TrainingConfig(batch_size=batch_size, replay_rows=replay_rows, replay=replay)
    rng, size = np.random.default_rng(devices), batch_size + replay_rows
    for labelled, old in itertools.product(([], [9], rng.integers(1, 200, 50).tolist()), ([], [11, 30])):
        shapes = trainer.training_shapes(labelled, old, 200, config)
        assert len(shapes) <= trainer.STEP_SHAPES + 1
        steps = [rng.integers(1, 201, rng.integers(1, size + 1)).tolist() for _ in range(30)]
        for step in [*steps, [200] * size, [1]]:
            batch = make_batch(rows_of(step), range(len(step)), shapes, devices)
            assert tokens_of([batch]) == sum(step)
            assert len(batch.tokens) == devices * -(-size // devices)


def test_each_shape_of_steps_is_used_on_many_devices(monkeypatch):
    """What counts is the fullest device of a step: shapes for less would be compiled for nothing."""
    lengths = np.random.default_rng(0).integers(64, 1000, 300).tolist()
    for devices in (2, 4, 8):
        monkeypatch.setattr(trainer, "data_mesh", lambda devices=devices: SimpleNamespace(size=devices))
        shapes = trainer.training_shapes(lengths, [], 1000, TrainingConfig(batch_size=8))
        rows = rows_of(lengths)
        used = []
        for seed in range(400):
            chosen = np.random.default_rng(seed).choice(300, 8)
            used.append(make_batch([rows[i] for i in chosen], range(8), shapes, devices).capacity)
        for shape in shapes[: trainer.STEP_SHAPES]:
            assert used.count(shape.capacity) > 20


@given(st.data(), st.integers(1, 4), st.integers(1, 12), st.integers(1, 6), st.integers(1, 8), limits)
@settings(max_examples=100, deadline=None)
def test_candidates_of_any_lengths(data, count, prompts, batch_size, devices, longest):
    each = st.integers(1, longest)
    lengths = data.draw(st.lists(each, min_size=prompts * count, max_size=prompts * count))
    encoder = SimpleNamespace(candidates=lambda prompts, candidates: rows_of(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools, "data_mesh", lambda: SimpleNamespace(size=devices))
        pool = candidate_pool(encoder, [None] * prompts, [""] * count, batch_size)
        batches = list(pool.batches())
    assert (pool.size, pool.candidates) == (prompts, count)
    found = []
    for batch in batches:
        share = len(batch.tokens) // devices
        assert share % count == 0
        assert all(part.sum() <= batch.capacity for part in batch.lengths.reshape(devices, share))
        for names, sizes, real in zip(
            *(array.reshape(-1, count) for array in (batch.index, batch.lengths, batch.row_mask)), strict=True
        ):
            assert real.all() or not real.any()
            if real.all():
                number = int(names[0])
                assert set(names) == {number}
                assert sizes.tolist() == lengths[number * count : (number + 1) * count]
                found.append(number)
    assert sorted(found) == list(range(prompts))
    assert len({(batch.tokens.shape, batch.capacity) for batch in batches}) <= pools.CANDIDATE_SHAPES


# A real dataset


@pytest.mark.parametrize("most", [2, 3])
@pytest.mark.parametrize(("devices", "share"), [(1, 0.055), (4, 0.055)])
def test_padding_of_a_real_pool(gsm8k, most, devices, share):
    """Batches of 16 rows a device, on average, with shapes chosen for these rows."""
    lengths = [prompt + response for prompt, response in gsm8k]
    shapes = budget_shapes(lengths, 16, most, max(lengths), devices)
    batches = list(sequence_batches(rows_of(lengths), shapes, devices))
    assert 1 - sum(lengths) / (devices * sum(batch.capacity for batch in batches)) < share


def test_rows_of_very_different_lengths_leave_little_room_around_the_line():
    """Log-normal lengths: shapes cut by the longest rows alone hold 28 times what the line does."""
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(4, 1, 2000)), 1, 1024).astype(int).tolist()
    shapes = budget_shapes(lengths, 16, 2, 1024)
    assert max(shape.rows * shape.width / shape.capacity for shape in shapes) < 10


def test_padding_of_rows_like_those_known(gsm8k):
    """Shapes of a random half of the rows, for the other half."""
    lengths = np.random.default_rng(4).permutation([prompt + response for prompt, response in gsm8k]).tolist()
    known, later = lengths[:256], lengths[256:]
    batches = list(sequence_batches(rows_of(later), budget_shapes(known, 16, 2, 512)))
    assert 1 - sum(later) / sum(batch.capacity for batch in batches) < 0.12


def test_padding_of_real_prompts(gsm8k):
    lengths = [prompt for prompt, _ in gsm8k]
    batches = list(sequence_batches(rows_of(lengths), prompt_shapes(lengths, 64, 2)))
    assert len(batches) == 8
    assert 1 - sum(lengths) / sum(batch.capacity for batch in batches) < 0.17


def test_padding_of_real_candidates(gsm8k):
    """Two answers to each prompt; whole prompts leave no more than rows one by one."""
    lengths = [prompt + more for prompt, _ in gsm8k for more in (2, 3)]
    shapes = budget_shapes(lengths, 32, 2, max(lengths))
    batches = list(grouped_batches(rows_of(lengths), 2, shapes))
    assert 1 - sum(lengths) / sum(batch.capacity for batch in batches) < 0.06


@pytest.mark.parametrize(("devices", "share"), [(1, 0.11), (2, 0.15), (4, 0.25)])
def test_padding_of_real_steps(gsm8k, devices, share):
    """Epochs of random steps of 8; on many devices a step takes as long as the fullest of them."""
    lengths = [prompt + response for prompt, response in gsm8k]
    shapes = step_shapes(random_steps(lengths, 8), 8, 3, max(lengths), devices)
    rng, rows = np.random.default_rng(3), rows_of(lengths)
    capacity = tokens = 0
    for _ in range(5):
        order = rng.permutation(len(lengths))
        for start in range(0, len(order), 8):
            batch = make_batch([rows[i] for i in order[start : start + 8]], range(8), shapes, devices)
            capacity, tokens = capacity + devices * batch.capacity, tokens + int(batch.lengths.sum())
    assert tokens == 5 * sum(lengths)
    assert 1 - tokens / capacity < share
