"""Rows to batches: masks and buckets, against loops over rows."""

import numpy as np
import pytest

from star_jax.data.batching import (
    BUCKETS,
    NARROW,
    Batch,
    Limits,
    Row,
    grouped_batches,
    pack,
    prompt_batches,
    sequence_batches,
)

LIMITS = [Limits(40, 20), Limits(NARROW, 1), Limits(100, 30), Limits(128, 256), Limits(20, 200)]


def draw_rows(seed: int, count: int, limits: Limits) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        prompt = limits.prompt if number == 0 else int(rng.integers(1, limits.prompt + 1))
        response = limits.response if number == 0 else int(rng.integers(1, limits.response + 1))
        rows.append(Row(rng.integers(1, 999, prompt + response).astype(np.int32), prompt))
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
    for array in (batch.tokens, batch.prompt_lengths, batch.lengths, batch.index):
        assert array.dtype == np.int32
        assert len(array) == len(batch.row_mask)


def smallest(rows: list[Row], buckets) -> tuple[int, int]:
    return min(
        bucket
        for bucket in buckets
        if all(len(row.tokens) <= bucket[0] and len(row.tokens) - row.prompt_length <= bucket[1] for row in rows)
    )


@pytest.mark.parametrize("limits", LIMITS)
def test_buckets_hold_all_that_the_limits_allow(limits):
    buckets = limits.sequence_buckets()
    assert 1 <= len(buckets) <= BUCKETS
    assert buckets == tuple(sorted(set(buckets)))
    assert buckets[-1] == (limits.prompt + limits.response, limits.response)
    assert 1 <= len(limits.prompt_buckets()) <= BUCKETS
    assert limits.prompt_buckets()[-1] == limits.prompt
    if limits.prompt + limits.response <= NARROW:
        assert len(buckets) == 1


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_every_sequence_is_in_exactly_one_batch(limits, batch_size):
    rows = draw_rows(1, 60, limits)
    batches = list(sequence_batches(rows, limits, batch_size))
    seen: list[int] = []
    for batch in batches:
        check_filling(batch)
        assert len(batch.tokens) == batch_size
        for place in np.flatnonzero(batch.row_mask):
            row = rows[batch.index[place]]
            check_row(batch, place, row)
            assert (batch.tokens.shape[1], batch.width) == smallest([row], limits.sequence_buckets())
        seen += batch.index[batch.row_mask].tolist()
    assert sorted(seen) == list(range(60))
    shapes = [(batch.tokens.shape[1], batch.width) for batch in batches]
    assert len(set(shapes)) <= BUCKETS
    assert shapes == sorted(shapes)  # One program after another, not back and forth.
    for shape in set(shapes):
        mine = [batch for batch in batches if (batch.tokens.shape[1], batch.width) == shape]
        order = np.concatenate([batch.index[batch.row_mask] for batch in mine])
        assert (np.diff(order) > 0).all()
        assert all(batch.row_mask.all() for batch in mine[:-1])  # Only the last one is filled up.


@pytest.mark.parametrize("limits", LIMITS)
def test_every_prompt_is_in_exactly_one_batch(limits):
    prompts = [row.tokens[: row.prompt_length] for row in draw_rows(2, 40, limits)]
    batches = list(prompt_batches(prompts, limits, 6))
    seen: list[int] = []
    for batch in batches:
        check_filling(batch)
        assert batch.width == 0
        for place in np.flatnonzero(batch.row_mask):
            prompt = prompts[batch.index[place]]
            check_row(batch, place, Row(prompt, len(prompt)))
            width = min(edge for edge in limits.prompt_buckets() if edge >= len(prompt))
            assert batch.tokens.shape == (6, width)
        seen += batch.index[batch.row_mask].tolist()
    assert sorted(seen) == list(range(40))
    assert len({batch.tokens.shape for batch in batches}) <= BUCKETS


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(("group", "groups_a_batch"), [(1, 4), (3, 4), (4, 1)])
def test_groups_stay_together(limits, group, groups_a_batch):
    groups = 15
    rows = draw_rows(3, groups * group, limits)
    batches = list(grouped_batches(rows, group, limits, groups_a_batch))
    seen: list[int] = []
    for batch in batches:
        check_filling(batch)
        assert len(batch.tokens) == groups_a_batch * group
        real = int(batch.row_mask.sum())
        assert real % group == 0
        for start in range(0, real, group):
            (number,) = set(batch.index[start : start + group].tolist())
            members = rows[number * group : (number + 1) * group]
            for turn, row in enumerate(members):
                check_row(batch, start + turn, row)
            assert (batch.tokens.shape[1], batch.width) == smallest(members, limits.sequence_buckets())
            seen.append(number)
    assert sorted(seen) == list(range(groups))
    assert len({(batch.tokens.shape, batch.width) for batch in batches}) <= BUCKETS


@pytest.mark.parametrize("limits", LIMITS)
def test_packed_rows_share_the_smallest_bucket_that_holds_them(limits):
    rows = draw_rows(4, 30, limits)
    for start in range(0, 30, 3):
        chosen = rows[start : start + 3]
        batch = pack(chosen, [7, 3, 5], limits, 5)
        check_filling(batch)
        assert batch.row_mask.tolist() == [True] * 3 + [False] * 2
        assert batch.index[:3].tolist() == [7, 3, 5]
        assert (batch.tokens.shape[1], batch.width) == smallest(chosen, limits.sequence_buckets())
        for place, row in enumerate(chosen):
            check_row(batch, place, row)


def test_a_row_over_the_limits_fits_no_bucket():
    with pytest.raises(ValueError, match="a row of 9 tokens, 4 of them response, fits no bucket"):
        list(sequence_batches([Row(np.ones(9, np.int32), 5)], Limits(6, 3), 2))


def test_no_rows_make_no_batch():
    assert list(sequence_batches([], Limits(6, 3), 2)) == []
    assert list(prompt_batches([], Limits(6, 3), 2)) == []
    assert list(grouped_batches([], 3, Limits(6, 3), 2)) == []
