"""Rows to batches: masks, order and widths, against loops over rows."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.data.batching import (
    Batch,
    epoch_order,
    grouped_batches,
    pack,
    padding_share,
    prompt_batches,
    sequence_batches,
)
from star_jax.data.encoding import Row

WIDTHS = [(60,), (16, 60), (8, 16, 32, 64)]


def draw_rows(seed: int, count: int, longest: int = 60) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(rng.integers(1, longest + 1))
        rows.append(Row(rng.integers(1, 999, length).astype(np.int32), int(rng.integers(1, length + 1))))
    return rows


def check_row(batch: Batch, place: int, row: Row) -> None:
    length = len(row.tokens)
    assert batch.lengths[place] == length
    assert batch.prompt_lengths[place] == row.prompt_length
    np.testing.assert_array_equal(batch.tokens[place, :length], row.tokens)
    assert (batch.tokens[place, length:] == 0).all()


def check_filling(batch: Batch) -> None:
    """Rows that only fill up: masked, behind the real ones, with one prompt token and no response."""
    count = int(batch.row_mask.sum())
    assert batch.row_mask.tolist() == [True] * count + [False] * (len(batch.row_mask) - count)
    assert (batch.prompt_lengths[count:] == 1).all()
    assert (batch.lengths[count:] == 1).all()
    assert (batch.index[count:] == 0).all()
    assert (batch.tokens[count:] == 0).all()
    for array in (batch.tokens, batch.prompt_lengths, batch.lengths, batch.index):
        assert array.dtype == np.int32
        assert len(array) == len(batch.row_mask)


def smallest(rows: list[Row], widths) -> int:
    return min(width for width in widths if all(len(row.tokens) <= width for row in rows))


def longest_first(lengths: list[int]) -> list[int]:
    """Selection sort: the longest that is left, the earliest of those."""
    left, order = list(range(len(lengths))), []
    while left:
        order.append(max(left, key=lambda i: (lengths[i], -i)))
        left.remove(order[-1])
    return order


def real_index(batches: list[Batch]) -> list[int]:
    return [int(number) for batch in batches for number in batch.index[batch.row_mask]]


# Makers


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("count", "batch_size"), [(60, 1), (60, 7), (5, 7), (14, 7)])
def test_every_sequence_is_in_one_batch_with_its_neighbours_in_length(widths, count, batch_size):
    rows = draw_rows(1, count)
    batches = list(sequence_batches(rows, widths, batch_size))
    assert real_index(batches) == longest_first([len(row.tokens) for row in rows])
    assert all(batch.row_mask.all() for batch in batches[:-1])  # Only the last one is filled up.
    for batch in batches:
        check_filling(batch)
        members = [rows[number] for number in batch.index[batch.row_mask]]
        assert batch.tokens.shape == (batch_size, smallest(members, widths))
        for place, row in enumerate(members):
            check_row(batch, place, row)


@pytest.mark.parametrize("widths", WIDTHS)
def test_prompts_are_rows_without_a_response(widths):
    prompts = [row.tokens for row in draw_rows(2, 40)]
    batches = list(prompt_batches(prompts, widths, 6))
    assert real_index(batches) == longest_first([len(prompt) for prompt in prompts])
    for batch in batches:
        check_filling(batch)
        members = [Row(prompts[number], len(prompts[number])) for number in batch.index[batch.row_mask]]
        assert batch.tokens.shape == (6, smallest(members, widths))
        for place, row in enumerate(members):
            check_row(batch, place, row)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("group", "groups_a_batch"), [(1, 4), (3, 4), (4, 1)])
def test_groups_stay_together(widths, group, groups_a_batch):
    groups = 15
    rows = draw_rows(3, groups * group)
    members = [rows[number * group : (number + 1) * group] for number in range(groups)]
    batches = list(grouped_batches(rows, group, widths, groups_a_batch))
    order = longest_first([max(len(row.tokens) for row in some) for some in members])
    assert real_index(batches) == [number for number in order for _ in range(group)]
    assert all(batch.row_mask.all() for batch in batches[:-1])
    for batch in batches:
        check_filling(batch)
        assert int(batch.row_mask.sum()) % group == 0
        together = [row for number in batch.index[batch.row_mask][::group] for row in members[number]]
        assert batch.tokens.shape == (groups_a_batch * group, smallest(together, widths))
        for place, row in enumerate(together):
            check_row(batch, place, row)


@pytest.mark.parametrize("widths", WIDTHS)
def test_packed_rows_share_the_smallest_width_that_holds_them(widths):
    rows = draw_rows(4, 30)
    for start in range(0, 30, 3):
        chosen = rows[start : start + 3]
        batch = pack(chosen, [7, 3, 5], widths, 5)
        check_filling(batch)
        assert batch.row_mask.tolist() == [True] * 3 + [False] * 2
        assert batch.index[:3].tolist() == [7, 3, 5]
        assert batch.tokens.shape == (5, smallest(chosen, widths))
        for place, row in enumerate(chosen):
            check_row(batch, place, row)


def test_a_row_over_every_width_is_an_error_that_says_both():
    rows = [Row(np.ones(length, np.int32), 1) for length in (3, 9, 7)]
    said = r"a row of 9 tokens is longer than every width of \(4, 8\)"
    calls = [
        lambda: list(prompt_batches([row.tokens for row in rows], (4, 8), 2)),
        lambda: list(sequence_batches(rows, (4, 8), 2)),
        lambda: list(grouped_batches(rows, 3, (4, 8), 2)),
        lambda: pack(rows, [0, 1, 2], (4, 8), 4),
        lambda: epoch_order([3, 9, 7], (4, 8), np.arange(3), 2),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=said):
            call()


def test_rows_that_are_no_whole_number_of_groups_are_refused():
    with pytest.raises(ValueError, match="7 rows are no whole number of groups of 3"):
        list(grouped_batches(draw_rows(5, 7), 3, (64,), 2))


def test_no_rows_make_no_batch():
    assert list(sequence_batches([], (16,), 2)) == []
    assert list(prompt_batches([], (16,), 2)) == []
    assert list(grouped_batches([], 3, (16,), 2)) == []
    assert epoch_order([], (16,), np.arange(0), 2) == []
    assert padding_share([]) == 0


def test_padding_share_counts_the_slots_without_a_token_of_a_real_row():
    rows = draw_rows(6, 23)
    batches = list(sequence_batches(rows, (24, 64), 5))
    slots = sum(batch.tokens.shape[0] * batch.tokens.shape[1] for batch in batches)
    assert padding_share(iter(batches)) == pytest.approx(1 - sum(len(row.tokens) for row in rows) / slots)
    full = Row(np.ones(16, np.int32), 4)
    assert padding_share([pack([full, full], [0, 1], (16,), 2)]) == 0
    assert padding_share([pack([full], [0], (16,), 4)]) == 0.75


# Order of an epoch


@st.composite
def epochs(draw):
    lengths = draw(st.lists(st.integers(1, 64), min_size=1, max_size=40))
    widths = (*sorted(draw(st.sets(st.sampled_from([8, 16, 24, 32, 48]), max_size=3))), 64)
    order = np.random.default_rng(draw(st.integers(0, 2**32))).permutation(len(lengths))
    return lengths, widths, order, draw(st.integers(1, 9))


@given(epochs())
@settings(max_examples=150, deadline=None)
def test_steps_of_an_epoch(epoch):
    lengths, widths, order, batch_size = epoch
    steps = epoch_order(lengths, widths, order, batch_size)
    assert sorted(np.concatenate(steps).tolist()) == list(range(len(lengths)))
    assert len(steps) == -(-len(lengths) // batch_size)
    assert sorted(len(step) for step in steps)[1:] == [batch_size] * (len(steps) - 1)
    again = epoch_order(np.array(lengths), list(widths), order.copy(), batch_size)
    assert [step.tolist() for step in again] == [step.tolist() for step in steps]
    # At most one step a boundary has rows of two widths, and rows of one width keep the order drawn.
    holds = [min(width for width in widths if width >= length) for length in lengths]
    crossings = sum(len({holds[row] for row in step}) - 1 for step in steps)
    assert crossings <= len(set(holds)) - 1
    turn = {int(row): place for place, row in enumerate(order)}
    for width in set(holds):
        mine = [[turn[int(row)] for row in step if holds[row] == width] for step in steps]
        together = sorted((part for part in mine if part), key=lambda part: part[0])
        assert list(chain.from_iterable(together)) == sorted(turn[i] for i, held in enumerate(holds) if held == width)
    first = [min(turn[int(row)] for row in step) for step in steps]
    assert first == sorted(first)
    assert first[0] == 0


@given(epochs())
@settings(max_examples=80, deadline=None)
def test_an_epoch_pads_no_more_than_rows_sorted_by_length(epoch):
    lengths, widths, order, batch_size = epoch
    rows = [Row(np.ones(length, np.int32), 1) for length in lengths]
    steps = epoch_order(lengths, widths, order, batch_size)
    packed = [pack([rows[i] for i in step], step, widths, batch_size) for step in steps]
    ideal = list(sequence_batches(rows, widths, batch_size))
    assert sorted(batch.tokens.shape for batch in packed) == sorted(batch.tokens.shape for batch in ideal)
    assert padding_share(packed) == padding_share(ideal)


@pytest.mark.parametrize(("count", "batch_size"), [(40, 8), (43, 8), (3, 8), (9, 1)])
def test_one_width_leaves_the_order_as_it_was_drawn(count, batch_size):
    rng = np.random.default_rng(7)
    order, lengths = rng.permutation(count), rng.integers(1, 65, count)
    steps = epoch_order(lengths, (64,), order, batch_size)
    want = [order[start : start + batch_size].tolist() for start in range(0, count, batch_size)]
    assert [step.tolist() for step in steps] == want


def test_rows_of_one_width_meet_whatever_their_exact_lengths():
    """Of rows of two widths, the longest of a width share a step no more often than chance has it."""
    rng = np.random.default_rng(8)
    lengths = np.arange(1, 33)
    together = 0
    for _ in range(2000):
        for step in epoch_order(lengths, (16, 32), rng.permutation(32), 4):
            together += {14, 15} <= set(step.tolist())
    assert together / 2000 == pytest.approx(3 / 15, abs=0.04)  # Each step is full, so 3 of the 15 others are with one.


def test_steps_of_all_widths_come_first_in_some_epoch():
    rng = np.random.default_rng(9)
    lengths = np.repeat([4, 12, 20], 8)
    firsts = [lengths[epoch_order(lengths, (8, 16, 24), rng.permutation(24), 4)[0][0]] for _ in range(600)]
    for length in (4, 12, 20):
        assert firsts.count(length) / 600 == pytest.approx(1 / 3, abs=0.1)


def test_an_order_that_is_no_permutation_is_refused():
    for order in ([0, 1], [0, 1, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="the order is no permutation of 3 rows"):
            epoch_order([5, 6, 7], (16,), np.array(order), 2)
