"""Rows to batches of a few static shapes, with little padding.

A batch is rows padded on the right, and room for their tokens in a line (`models.ragged`), where most of the work is
done: what costs time is the line, and its length is chosen so that batches fill it. A run chooses its shapes once,
from the lengths of its rows, so that it compiles a handful of programs.

Shapes: `B` rows of a batch, `P` prompt tokens, `T` tokens of a row, prompt and response together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from star_jax.data.encoding import Row

SHORT = 64
"""Rows and lines of fewer tokens than this get sizes to the token: rounding up would cost more than odd shapes do."""

SIMULATED_STEPS = 256
"""Random batches from which the shapes of training steps are chosen."""


Thing = TypeVar("Thing")


class Shape(NamedTuple):
    """What a device is compiled for.

    Attributes:
      rows: at most.
      width: T, of the longest row at most.
      slots: tokens of all rows together at most.
    """

    rows: int
    width: int
    slots: int


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of one shape, those of one device after those of another.

    Attributes:
      tokens: `B×T` int32.
      prompt_lengths: `B` int32, at least 1.
      lengths: `B` int32, prompt and response together; 0 for rows that only fill the batch up.
      index: `B` int32, the row's place in its dataset; names its PRNG key.
      row_mask: `B` bool, False for rows that only fill the batch up.
      slots: room for the tokens of a device's rows (static).
    """

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    lengths: np.ndarray
    index: np.ndarray
    row_mask: np.ndarray
    slots: int


def choose_sizes(lengths: Sequence[int] | np.ndarray, most: int, *, multiple: int = 16) -> tuple[int, ...]:
    """The sizes that leave the least padding, Σ (smallest size that holds ℓ − ℓ) over the lengths ℓ.

    Args:
      lengths: tokens of each thing that is padded, in any order.
      most: number of sizes at most; fewer come back where fewer leave no more padding.
      multiple: every size is a multiple of it.

    Returns:
      Increasing sizes.

    Raises:
      ValueError: `most`, `multiple` or a length is below 1, or there is no length.
    """
    if most < 1 or multiple < 1:
        raise ValueError(f"at most {most} sizes that are multiples of {multiple}: both must be at least 1")
    known = np.asarray(lengths, np.int64)
    if known.size == 0:
        raise ValueError("no lengths: there is nothing to choose sizes for")
    if known.min() < 1:
        raise ValueError(f"a length of {known.min()} tokens: lengths must be at least 1")
    sizes, counts = np.unique(_round_up(known, multiple), return_counts=True)
    rows = np.concatenate([[0], np.cumsum(counts)])
    slots = sizes[:, None] * (rows[1:, None] - rows[:-1])  # what those of start..end take with the size of the end
    return tuple(int(size) for size in sizes[_run_ends(slots, most)])


def _round_up(lengths: np.ndarray, multiple: int) -> np.ndarray:
    return -(-lengths // multiple) * multiple


def _run_ends(costs: np.ndarray, most: int) -> list[int]:
    """Where each of at most `most` consecutive runs ends, so that the sum of their costs is least.

    `costs[end, start]` is that of start..end. Cutting a histogram into the best few runs is a one-dimensional
    segmentation, which dynamic programming solves exactly (Jagadish et al., "Optimal histograms with quality
    guarantees", VLDB 1998, section 3; there a run costs its variance).
    """
    costs = costs.astype(np.float64)
    costs[np.triu_indices_from(costs, 1)] = np.inf
    least, starts = costs[:, 0], []
    for _ in range(min(most, len(costs)) - 1):
        totals = costs + np.concatenate([[np.inf], least[:-1]])
        # A run more only where it costs less.
        starts.append(np.where(totals.min(axis=1) < least, totals.argmin(axis=1), 0))
        least = np.minimum(totals.min(axis=1), least)
    ends = [len(costs) - 1]
    for start in reversed(starts):
        if start[ends[-1]] > 0:
            ends.append(int(start[ends[-1]]) - 1)
    return ends[::-1]


def prompt_shapes(lengths: Sequence[int], rows: int, most: int, devices: int = 1) -> tuple[Shape, ...]:
    """Shapes of prompts that are answered together: always so many, for each costs as much as the batch is long.

    Args:
      lengths: tokens of each prompt.
      rows: of a batch; fewer where there are not so many for each device.
      most: number of shapes at most.
      devices: that share the prompts.
    """
    if not lengths:
        return ()
    rows = min(rows, -(-len(lengths) // devices))
    batches = _dealt(lengths, rows, sum(lengths), devices)
    longest = [hands[0][0] for hands in batches]
    widths = choose_sizes(longest, most, multiple=_multiple(max(longest)))
    shapes = []
    for low, width in zip((0, *widths), widths, strict=False):
        fullest = max(sum(hand) for hands in batches if low < hands[0][0] <= width for hand in hands)
        shapes.append(Shape(rows, width, _rounded(fullest)))
    return tuple(shapes)


def budget_shapes(lengths: Sequence[int], rows: int, most: int, longest: int, devices: int = 1) -> tuple[Shape, ...]:
    """Shapes of rows that are scored together: all with room for the same number of tokens, and rows that fill it.

    Of all ways to cut the batches into `most` shapes, the one with the smallest rows × width over all batches: so much
    is held in memory, and so much attention is computed where it takes padded rows.

    Args:
      lengths: tokens of each row, or of rows like those that will come.
      rows: of a device's share of a batch, on average.
      most: number of shapes at most for rows like these.
      longest: tokens of the longest row that may come; it gets a shape of its own where none of these holds it.
      devices: that share a batch.
    """
    if not lengths:
        return (Shape(rows, longest, rows * longest),)
    count = -(-len(lengths) // (rows * devices))
    slots = _rounded(max(longest, -(-sum(lengths) // (count * devices))))
    while len(batches := _dealt(lengths, len(lengths), slots, devices)) > count:
        slots = _rounded(slots + 1)
    first = np.asarray([hands[0][0] for hands in batches])
    widths, kind, counts = np.unique(_round_up(first, _multiple(max(lengths))), return_inverse=True, return_counts=True)
    # The only batch of a width may be the last one, of few rows; those of later rows shall be full all the same.
    most_rows = slots // widths
    np.maximum.at(most_rows, kind, [max(map(len, hands)) for hands in batches])
    before = np.concatenate([[0], np.cumsum(counts)])
    held = np.zeros((len(widths), len(widths)), np.int64)  # [end, start]: the most rows of a batch of start..end
    for end in range(len(widths)):
        held[end, : end + 1] = np.maximum.accumulate(most_rows[end::-1])[::-1]
    ends = _run_ends(widths[:, None] * held * (before[1:, None] - before[:-1]), most)
    starts = [0, *(end + 1 for end in ends[:-1])]
    shapes = [Shape(int(held[end, start]), int(widths[end]), slots) for start, end in zip(starts, ends, strict=True)]
    if longest > shapes[-1].width:
        shapes.append(Shape(max(1, slots // longest), longest, slots))
    return tuple(shapes)


def _dealt(lengths: Sequence[int], most: int, slots: int, devices: int) -> list[list[list[int]]]:
    """Lengths, from the longest down, in batches, each of a hand for every device: see `_deal`."""
    left = np.sort(np.asarray(lengths, np.int64))[::-1].tolist()
    batches = []
    while left:
        hands = _deal(left, most, slots, devices)
        batches.append([[left[place] for place in hand] for hand in hands])
        left = left[sum(map(len, hands)) :]
    return batches


def step_shapes(
    steps: Sequence[Sequence[int]], rows: int, most: int, longest: int, devices: int = 1
) -> tuple[Shape, ...]:
    """Shapes of training steps, whose rows are thrown together at random.

    Args:
      steps: tokens of each row, for steps like those that will come.
      rows: of a step.
      most: number of shapes at most for steps like these.
      longest: tokens of the longest row that may come; a step of such rows gets a shape of its own.
      devices: that share a step.
    """
    share = -(-rows // devices)
    whole = Shape(share, longest, share * longest)
    if not steps:
        return (whole,)
    # What counts is the device with the fullest hand, for all have its shape.
    totals = [max(map(sum, _hands(step, devices, lambda length: length))) for step in steps]
    shapes = []
    for slots in choose_sizes(totals, most, multiple=_multiple(max(totals), 64)):
        width = max(max(step) for step, total in zip(steps, totals, strict=True) if total <= slots)
        shapes.append(Shape(share, min(longest, _rounded(width, 16)), min(slots, whole.slots)))
    return (*shapes, whole) if shapes[-1] != whole else tuple(shapes)


def random_steps(lengths: Sequence[int], rows: int) -> list[list[int]]:
    """Lengths of the rows of random training steps, the same for the same lengths."""
    generator = np.random.default_rng(0)
    known = np.asarray(lengths, np.int64)
    return [generator.choice(known, rows).tolist() for _ in range(SIMULATED_STEPS)] if rows and len(known) else []


def _multiple(largest: int, multiple: int = 16) -> int:
    return multiple if largest >= SHORT else 1


def _rounded(size: int, multiple: int = 64) -> int:
    return -(-size // _multiple(size, multiple)) * _multiple(size, multiple)


def prompt_batches(prompts: Sequence[np.ndarray], shapes: Sequence[Shape], devices: int = 1) -> Iterator[Batch]:
    """Batches `B×P` of prompts alone, as `sequence_batches` makes them."""
    yield from sequence_batches([Row(tokens, len(tokens)) for tokens in prompts], shapes, devices)


def sequence_batches(rows: Sequence[Row], shapes: Sequence[Shape], devices: int = 1) -> Iterator[Batch]:
    """Batches `B×T` of neighbours in length.

    The longest come first, so that a run that needs too much memory fails at once; rows of one length keep their
    order. Each row goes to the device that has the fewest tokens, until one does not fit there, so that no device waits
    for others; `B` is the rows of the shape times the devices.

    Raises:
      ValueError: a row fits no shape.
    """
    yield from grouped_batches(rows, 1, shapes, devices)


def grouped_batches(rows: Sequence[Row], group: int, shapes: Sequence[Shape], devices: int = 1) -> Iterator[Batch]:
    """As `sequence_batches`, of rows that stay together in groups of `group` neighbours; `index` numbers the groups.

    Raises:
      ValueError: a row fits no shape, or the rows are not whole groups.
    """
    if len(rows) % group:
        raise ValueError(f"{len(rows)} rows are not whole groups of {group}")
    sizes = np.asarray([len(row.tokens) for row in rows], np.int64).reshape(-1, group)
    longest, totals = sizes.max(axis=1, initial=0), sizes.sum(axis=1)
    order, start = np.argsort(-longest, kind="stable").tolist(), 0
    while start < len(order):
        shape = _smallest(shapes, int(longest[order[start]]), int(totals[order[start]]), group)
        left = (int(totals[number]) for number in order[start:])
        hands = [
            [order[start + place] for place in hand] for hand in _deal(left, shape.rows // group, shape.slots, devices)
        ]
        start += sum(map(len, hands))
        yield _pad(
            [[rows[number * group + turn] for number in hand for turn in range(group)] for hand in hands],
            [[number for number in hand for _ in range(group)] for hand in hands],
            shape,
        )


def _deal(sizes: Iterable[int], most: int, slots: int, devices: int) -> list[list[int]]:
    """Places of the first sizes, each dealt to the device with the fewest tokens, until one does not fit.

    A device takes `most` of them, and `slots` tokens, at most.
    """
    hands: list[list[int]] = [[] for _ in range(devices)]
    held = [0] * devices
    for place, size in enumerate(sizes):
        free = [device for device in range(devices) if len(hands[device]) < most]
        least = min(free, key=held.__getitem__, default=0)
        if not free or held[least] + size > slots:
            break
        hands[least].append(place)
        held[least] += size
    return hands


def pack(rows: Sequence[Row], index: Sequence[int] | np.ndarray, shapes: Sequence[Shape], devices: int = 1) -> Batch:
    """The given rows as one batch, dealt out to the devices, in the smallest shape that holds them.

    Args:
      rows: what goes into the batch.
      index: their numbers.
      shapes: of a device's share.
      devices: how many share the rows; the batch has as many times a shape's rows.

    Raises:
      ValueError: they fit no shape.
    """
    hands = _hands(range(len(rows)), devices, lambda place: len(rows[place].tokens))
    total = max(sum(len(rows[place].tokens) for place in hand) for hand in hands)
    shape = _smallest(shapes, max(len(row.tokens) for row in rows), total, max(map(len, hands)))
    return _pad([[rows[i] for i in hand] for hand in hands], [[int(index[i]) for i in hand] for hand in hands], shape)


def _hands(things: Iterable[Thing], devices: int, tokens: Callable[[Thing], int]) -> list[list[Thing]]:
    """All of the things dealt out, from the longest down, no device more than its share of them."""
    order = sorted(things, key=lambda thing: -tokens(thing))
    sizes = [tokens(thing) for thing in order]
    hands = _deal(sizes, -(-len(order) // devices), sum(sizes), devices)
    return [[order[place] for place in hand] for hand in hands]


def _smallest(shapes: Sequence[Shape], longest: int, total: int, rows: int) -> Shape:
    """The smallest shape for rows of which one has `longest` tokens and all together have `total`."""
    for shape in sorted(shapes, key=lambda shape: (shape.slots, shape.width)):
        if longest <= shape.width and total <= shape.slots and rows <= shape.rows:
            return shape
    raise ValueError(f"{rows} rows of {total} tokens, the longest of {longest}, fit none of the shapes {tuple(shapes)}")


def _pad(parts: Sequence[Sequence[Row]], index: Sequence[Sequence[int]], shape: Shape) -> Batch:
    size = len(parts) * shape.rows
    tokens = np.zeros((size, shape.width), np.int32)
    prompt_lengths = np.ones(size, np.int32)
    lengths, numbers = np.zeros((2, size), np.int32)
    for number, (part, names) in enumerate(zip(parts, index, strict=True)):
        for place, (row, name) in enumerate(zip(part, names, strict=True), start=number * shape.rows):
            tokens[place, : len(row.tokens)] = row.tokens
            prompt_lengths[place], lengths[place], numbers[place] = row.prompt_length, len(row.tokens), name
    return Batch(tokens, prompt_lengths, lengths, numbers, lengths > 0, shape.slots)
