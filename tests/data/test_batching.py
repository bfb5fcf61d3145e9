"""Rows to batches of given shapes: order, shares of the devices, filler rows, against loops over rows."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.data.batching import Batch, Shape, grouped_batches, make_batch, prompt_batches, sequence_batches
from star_jax.data.tokenization import TokenizedExample

LONGEST = 40


def draw_rows(seed: int, lengths: Sequence[int]) -> list[TokenizedExample]:
    rng = np.random.default_rng(seed)
    return [
        TokenizedExample(rng.integers(1, 999, length).astype(np.int32), int(rng.integers(1, length + 1)))
        for length in lengths
    ]


def full_row(length: int) -> TokenizedExample:
    return TokenizedExample(np.ones(length, np.int32), 1)


@st.composite
def some_shapes(draw, group: int = 1) -> tuple[Shape, ...]:
    """Shapes of whole groups in any order, of which one holds a group of the longest rows."""
    sizes = st.tuples(st.integers(1, 5), st.integers(1, LONGEST), st.integers(1, 3 * LONGEST))
    shapes = [Shape(rows * group, width, capacity) for rows, width, capacity in draw(st.lists(sizes, max_size=4))]
    shapes.append(Shape(group * draw(st.integers(1, 4)), LONGEST, group * draw(st.integers(LONGEST, 3 * LONGEST))))
    return tuple(draw(st.permutations(shapes)))


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Selection sort: the longest that is left, the earliest of those."""
    left, order = list(range(len(lengths))), []
    while left:
        order.append(max(left, key=lambda i: (lengths[i], -i)))
        left.remove(order[-1])
    return order


def smallest(shapes: Sequence[Shape], rows: Sequence[TokenizedExample], share: int | None = None) -> Shape:
    """Of the shapes that hold all rows, and a share of so many tokens, the one of least room."""
    lengths = [len(row.tokens) for row in rows]
    tokens = sum(lengths) if share is None else share
    holding = [shape for shape in shapes if max(lengths) <= shape.width and tokens <= shape.capacity]
    return min((shape for shape in holding if shape.rows >= len(rows)), key=lambda shape: (shape.capacity, shape.width))


def shares(batch: Batch, shape: Shape, devices: int) -> list[list[int]]:
    """Places of the real rows of each device; checks all that holds for any batch of that shape."""
    size = devices * shape.rows
    assert batch.tokens.shape == (size, shape.width)
    assert batch.capacity == shape.capacity
    for array in (batch.tokens, batch.prompt_lengths, batch.lengths, batch.index):
        assert array.dtype == np.int32
        assert len(array) == size
    assert batch.row_mask.dtype == bool
    found = []
    for device in range(devices):
        places = range(device * shape.rows, (device + 1) * shape.rows)
        real = [place for place in places if batch.row_mask[place]]
        assert real == list(places[: len(real)])  # Filler stands behind.
        assert batch.lengths[real].sum() <= shape.capacity
        found.append(real)
    filler = ~batch.row_mask
    assert (batch.lengths[filler] == 0).all()
    assert (batch.prompt_lengths[filler] == 1).all()
    assert (batch.index[filler] == 0).all()
    assert (batch.tokens[filler] == 0).all()
    return found


def check_row(batch: Batch, place: int, row: TokenizedExample) -> None:
    length = len(row.tokens)
    assert batch.lengths[place] == length
    assert batch.prompt_lengths[place] == row.prompt_length
    np.testing.assert_array_equal(batch.tokens[place, :length], row.tokens)
    assert (batch.tokens[place, length:] == 0).all()


def check_batches(batches: Sequence[Batch], rows: Sequence[TokenizedExample], group: int, shapes, devices: int) -> None:
    """Whole groups, longest first, each once; as many in a batch as its shape holds on all devices."""
    members = [rows[start : start + group] for start in range(0, len(rows), group)]
    totals = [sum(len(row.tokens) for row in some) for some in members]
    order = longest_first([max(len(row.tokens) for row in some) for some in members])
    waiting = list(order)
    for batch in batches:
        shape = smallest(shapes, members[waiting[0]])
        held = []
        for real in shares(batch, shape, devices):
            assert len(real) % group == 0
            held.append([int(number) for number in batch.index[real[::group]]])
            for turn, place in enumerate(real):
                assert batch.index[place] == held[-1][turn // group]
                check_row(batch, place, members[held[-1][turn // group]][turn % group])
        # The next of those that wait goes to the device with the fewest tokens, until it does not fit there.
        hands: list[list[int]] = [[] for _ in range(devices)]
        while waiting:
            free = [device for device in range(devices) if (len(hands[device]) + 1) * group <= shape.rows]
            tokens = [sum(totals[number] for number in hand) for hand in hands]
            if not free or min(tokens[device] for device in free) + totals[waiting[0]] > shape.capacity:
                break
            hands[min(free, key=lambda device: (tokens[device], device))].append(waiting.pop(0))
        assert held == hands
        assert any(hands)
    assert waiting == []


@given(some_shapes(), st.lists(st.integers(1, LONGEST), max_size=40), st.integers(1, 8), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_sequences_fill_shares_from_the_longest_down(shapes, lengths, devices, seed):
    rows = draw_rows(seed, lengths)
    check_batches(list(sequence_batches(rows, shapes, devices)), rows, 1, shapes, devices)


@given(st.data(), st.integers(2, 4), st.integers(0, 12), st.integers(1, 8), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_groups_stay_together(data, group, groups, devices, seed):
    shapes = data.draw(some_shapes(group))
    lengths = data.draw(st.lists(st.integers(1, LONGEST), min_size=group * groups, max_size=group * groups))
    rows = draw_rows(seed, lengths)
    check_batches(list(grouped_batches(rows, group, shapes, devices)), rows, group, shapes, devices)


def test_a_group_of_more_tokens_than_a_longer_one_waits_for_a_shape_that_holds_it():
    """The first group has the longest row, the second the most tokens."""
    rows = [full_row(length) for length in (9, 1, 8, 8)]
    shapes = (Shape(4, 16, 12), Shape(4, 16, 32))
    for devices in (1, 2):
        batches = list(grouped_batches(rows, 2, shapes, devices))
        assert [batch.capacity for batch in batches] == [12, 32]
        check_batches(batches, rows, 2, shapes, devices)


def test_all_devices_have_a_share_of_what_is_left():
    """One batch of 13 rows, and the second of two batches, on four devices of six rows each."""
    for count, last in ((13, [4, 3, 3, 3]), (30, [2, 2, 1, 1])):
        *_, batch = sequence_batches([full_row(3)] * count, [Shape(6, 8, 48)], 4)
        assert batch.row_mask.reshape(4, 6).sum(axis=1).tolist() == last


@pytest.mark.parametrize("devices", [1, 3])
def test_prompts_are_rows_without_a_response(devices):
    prompts = [row.tokens for row in draw_rows(2, np.random.default_rng(2).integers(1, LONGEST, 40))]
    shapes = (Shape(6, 20, 80), Shape(6, LONGEST, 160))
    batches = list(prompt_batches(prompts, shapes, devices))
    check_batches(batches, [TokenizedExample(tokens, len(tokens)) for tokens in prompts], 1, shapes, devices)


@given(some_shapes(), st.data(), st.integers(1, 8), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_packed_rows_are_dealt_out_from_the_longest_down(shapes, data, devices, seed):
    whole = Shape(4, LONGEST, 4 * LONGEST)
    lengths = data.draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=4 * devices))
    rows, names = draw_rows(seed, lengths), np.random.default_rng(seed).permutation(1000)[: len(lengths)]
    batch = make_batch(rows, names, (*shapes, whole), devices)
    hands: list[list[int]] = [[] for _ in range(devices)]
    for number in longest_first(lengths):
        free = [hand for hand in hands if len(hand) < -(-len(lengths) // devices)]
        min(free, key=lambda hand: sum(lengths[number] for number in hand)).append(number)
    fullest = max(sum(lengths[number] for number in hand) for hand in hands)
    longest_hand = max(hands, key=len)
    widest = [full_row(max(lengths))] * len(longest_hand)
    shape = smallest((*shapes, whole), widest, fullest)
    for hand, real in zip(hands, shares(batch, shape, devices), strict=True):
        assert batch.index[real].tolist() == [names[number] for number in hand]
        for number, place in zip(hand, real, strict=True):
            check_row(batch, place, rows[number])


def test_what_fits_no_shape_is_an_error_that_names_the_sizes():
    shapes = (Shape(2, 8, 16), Shape(4, 10, 12))
    named = r"fit none of the shapes \(Shape\(rows=2, width=8, capacity=16\), Shape\(rows=4, width=10, capacity=12\)\)"
    rows = [full_row(length) for length in (3, 11, 7)]
    calls = {
        "1 rows of 11 tokens, the longest of 11": [
            lambda: list(prompt_batches([row.tokens for row in rows], shapes)),
            lambda: list(sequence_batches(rows, shapes, 2)),
        ],
        "3 rows of 21 tokens, the longest of 11": [
            lambda: list(grouped_batches(rows, 3, shapes)),
            lambda: make_batch(rows, [0, 1, 2], shapes),
        ],
        # Each row fits, but not together: too many tokens, too many rows, on the fuller of two devices.
        "3 rows of 24 tokens, the longest of 8": [lambda: make_batch([full_row(8)] * 3, [0, 1, 2], shapes)],
        "5 rows of 5 tokens, the longest of 1": [lambda: make_batch([full_row(1)] * 5, range(5), shapes)],
        "2 rows of 16 tokens, the longest of 9": [
            lambda: make_batch([full_row(9), *[full_row(8)] * 2], range(3), shapes, 2)
        ],
        "2 rows of 18 tokens, the longest of 9": [lambda: list(grouped_batches([full_row(9)] * 2, 2, shapes, 4))],
        "4 rows of 16 tokens, the longest of 4": [lambda: list(grouped_batches([full_row(4)] * 4, 4, shapes))],
    }
    for said, makers in calls.items():
        for make in makers:
            with pytest.raises(ValueError, match=f"^{said}, {named}$"):
                make()
    with pytest.raises(ValueError, match=r"fit none of the shapes \(\)"):
        list(sequence_batches(rows, ()))


def test_rows_that_are_not_whole_groups_are_refused():
    with pytest.raises(ValueError, match="7 rows are not whole groups of 3"):
        list(grouped_batches(draw_rows(5, range(1, 8)), 3, [Shape(6, 64, 384)]))


@pytest.mark.parametrize("devices", [1, 4])
def test_no_rows_make_no_batch(devices):
    shapes = [Shape(6, 16, 96)]
    assert list(sequence_batches([], shapes, devices)) == []
    assert list(prompt_batches([], shapes, devices)) == []
    assert list(grouped_batches([], 3, shapes, devices)) == []
    assert list(prompt_batches([], ())) == []
