"""Rows to batches of a few static shapes, with little padding.

A batch is rows padded on the right, and room for their tokens in a line (`models.ragged`), where most of the work is
done: what costs time is the line, and its length is chosen so that batches fill it. A run chooses its shapes once,
from the lengths of its rows, so that it compiles a handful of programs.

Shapes: `B` rows of a batch, `P` prompt tokens, `T` tokens of a row, prompt and response together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from star_jax.data.encoding import Row

SHORT = 64
"""Rows and lines of fewer tokens than this get sizes to the token: rounding up would cost more than odd shapes do."""

SIMULATED_STEPS = 256
"""Random batches from which the shapes of training steps are chosen."""


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


def choose_sizes(
    lengths: Sequence[int] | np.ndarray, most: int, *, limit: int | None = None, multiple: int = 16
) -> tuple[int, ...]:
    """The sizes that leave the least padding, Σ (smallest size that holds ℓ − ℓ) over the lengths ℓ.

    Cutting a histogram into the best few runs is a one-dimensional segmentation, which dynamic programming solves
    exactly (Jagadish et al., "Optimal histograms with quality guarantees", VLDB 1998, section 3; here a run costs
    the padding up to its longest length instead of its variance).

    Args:
      lengths: tokens of each thing that is padded, in any order.
      most: number of sizes at most; fewer come back where fewer leave no more padding.
      limit: a length that must fit too though nothing may have it yet; the size for it is one of `most`.
      multiple: every size is a multiple of it.

    Returns:
      Increasing sizes.

    Raises:
      ValueError: `most`, `multiple`, a length or the limit is below 1, or there is neither a length nor a limit.
    """
    if most < 1 or multiple < 1:
        raise ValueError(f"at most {most} sizes that are multiples of {multiple}: both must be at least 1")
    known = np.asarray(lengths, np.int64)
    required = known if limit is None else np.append(known, limit)
    if required.size == 0:
        raise ValueError("no lengths and no limit: there is nothing to choose sizes for")
    if required.min() < 1:
        raise ValueError(f"a length of {required.min()} tokens: lengths and limit must be at least 1")
    widths, counts = np.unique(_round_up(known, multiple), return_counts=True)
    widest = _round_up(required.max(), multiple)
    if widest not in widths:
        widths, counts = np.append(widths, widest), np.append(counts, 0)
    return tuple(int(width) for width in widths[_run_ends(widths, counts, min(most, len(widths)))])


def _round_up(lengths: np.ndarray, multiple: int) -> np.ndarray:
    return -(-lengths // multiple) * multiple


def _run_ends(widths: np.ndarray, counts: np.ndarray, runs: int) -> list[int]:
    """Where each of `runs` consecutive runs ends, so that Σ count × width of the run's end is least."""
    rows = np.concatenate([[0], np.cumsum(counts)])
    # slots[end, start]: what the rows of start..end take when all have the width of the end.
    slots = widths[:, None] * (rows[1:, None] - rows[:-1]).astype(np.float64)
    slots[np.triu_indices_from(slots, 1)] = np.inf
    least = slots[:, 0]
    starts = []
    for _ in range(runs - 1):
        before = np.concatenate([[np.inf], least[:-1]])
        totals = slots + before
        starts.append(totals.argmin(axis=1))
        least = totals.min(axis=1)
    ends = [len(widths) - 1]
    for start in reversed(starts):
        ends.append(int(start[ends[-1]]) - 1)
    return ends[::-1]


def prompt_shapes(lengths: Sequence[int], rows: int, most: int) -> tuple[Shape, ...]:
    """Shapes of prompts that are answered together: always `rows` of them, for each costs as much as the batch is long.

    Args:
      lengths: tokens of each prompt.
      rows: of a batch.
      most: number of shapes at most.
    """
    if not lengths:
        return ()
    order = np.sort(np.asarray(lengths, np.int64))[::-1]
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    longest = [int(batch[0]) for batch in batches]
    widths = choose_sizes(longest, most, multiple=_multiple(max(longest)))
    shapes = []
    for low, width in zip((0, *widths), widths, strict=False):
        total = max(int(batch.sum()) for batch in batches if low < batch[0] <= width)
        shapes.append(Shape(rows, width, _rounded(total)))
    return tuple(shapes)


def budget_shapes(lengths: Sequence[int], rows: int, most: int, longest: int) -> tuple[Shape, ...]:
    """Shapes of rows that are scored together: all with room for the same number of tokens, and rows that fill it.

    Args:
      lengths: tokens of each row, or of rows like those that will come.
      rows: of a batch, on average.
      most: number of shapes at most for rows like these.
      longest: tokens of the longest row that may come; it gets a shape of its own where none of these holds it.
    """
    slots = rows * longest
    if not lengths:
        return (Shape(rows, longest, slots),)
    order = np.sort(np.asarray(lengths, np.int64))[::-1].tolist()
    count = -(-len(order) // rows)
    slots = _rounded(max(longest, -(-sum(order) // count)))
    while len(batches := _filled(order, slots)) > count:
        slots = _rounded(slots + 1)
    first = [batch[0] for batch in batches]
    widths = choose_sizes(first, most, multiple=_multiple(max(first)))
    shapes = []
    for low, width in zip((0, *widths), widths, strict=False):
        fullest = max(len(batch) for batch in batches if low < batch[0] <= width)
        # The only batch of a width may be the last one, of few rows; those of later rows shall be full all the same.
        shapes.append(Shape(max(fullest, slots // width), width, slots))
    if longest > widths[-1]:
        shapes.append(Shape(max(1, slots // longest), longest, slots))
    return tuple(shapes)


def _filled(lengths: Sequence[int], slots: int) -> list[list[int]]:
    """Consecutive runs of lengths that sum to `slots` at most."""
    batches: list[list[int]] = [[]]
    for length in lengths:
        if sum(batches[-1]) + length > slots:
            batches.append([])
        batches[-1].append(length)
    return batches


def step_shapes(batches: Sequence[Sequence[int]], rows: int, most: int, longest: int) -> tuple[Shape, ...]:
    """Shapes of training steps, whose rows are thrown together at random.

    Args:
      batches: tokens of each row, for steps like those that will come.
      rows: of a step.
      most: number of shapes at most for steps like these.
      longest: tokens of the longest row that may come; a step of such rows gets a shape of its own.
    """
    whole = Shape(rows, longest, rows * longest)
    if not batches:
        return (whole,)
    totals = [sum(batch) for batch in batches]
    shapes = []
    for slots in choose_sizes(totals, most, multiple=_multiple(max(totals), 64)):
        width = max(max(batch) for batch, total in zip(batches, totals, strict=True) if total <= slots)
        shapes.append(Shape(rows, min(longest, _rounded(width, 16)), min(slots, whole.slots)))
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
    order. Each device is given rows until its shape is full; `B` is the rows of the shape times the devices.

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
    waiting = np.argsort(-longest, kind="stable").tolist()[::-1]
    while waiting:
        shape = _smallest(shapes, int(longest[waiting[-1]]), int(totals[waiting[-1]]), group)
        parts = []
        for _ in range(devices):
            part: list[int] = []
            while (
                waiting and (len(part) + 1) * group <= shape.rows and totals[[*part, waiting[-1]]].sum() <= shape.slots
            ):
                part.append(waiting.pop())
            parts.append(part)
        yield _pad(
            [[rows[number * group + turn] for number in part for turn in range(group)] for part in parts],
            [[number for number in part for _ in range(group)] for part in parts],
            shape,
        )


def pack(rows: Sequence[Row], index: Sequence[int] | np.ndarray, shapes: Sequence[Shape], devices: int = 1) -> Batch:
    """The given rows as one batch, dealt out to the devices, in the smallest shape that holds them.

    Raises:
      ValueError: they fit no shape.
    """
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].tokens))
    hands = [order[device::devices] for device in range(devices)]
    total = max(sum(len(rows[place].tokens) for place in hand) for hand in hands)
    shape = _smallest(shapes, len(rows[order[0]].tokens), total, len(hands[0]))
    return _pad([[rows[i] for i in hand] for hand in hands], [[int(index[i]) for i in hand] for hand in hands], shape)


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


def padding_share(batches: Iterable[Batch], devices: int = 1) -> float:
    """Share of the lines of some batches that holds no token; 0 without batches."""
    batches = list(batches)
    slots = sum(batch.slots * devices for batch in batches)
    return 1 - sum(int(batch.lengths.sum()) for batch in batches) / slots if slots else 0.0
