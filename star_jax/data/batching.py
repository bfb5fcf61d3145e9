"""Rows to batches of a few static shapes, with little padding.

A batch is rows padded on the right, and room for their tokens one behind another (`ops.packing`), where most of
the work is done: what costs time is that room, and it is chosen so that batches fill it. A run chooses its shapes once,
from the lengths of its rows, so that it compiles a handful of programs.

Shapes: `B` rows of a batch, `P` prompt tokens, `T` tokens of a row, prompt and response together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from star_jax.data.rows import PromptRows, row_lengths
from star_jax.data.tokenization import TokenizedExample

Thing = TypeVar("Thing")


class Shape(NamedTuple):
    """What a device is compiled for.

    Attributes:
      rows: at most.
      width: T, of the longest row at most.
      capacity: tokens of all rows together at most.
    """

    rows: int
    width: int
    capacity: int


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of one shape, those of one device after those of another.

    Attributes:
      tokens: `B×T` int32.
      prompt_lengths: `B` int32, at least 1.
      lengths: `B` int32, prompt and response together; 0 for rows that only fill the batch up.
      index: `B` int32, the row's place in its dataset; names its PRNG key.
      row_mask: `B` bool, False for rows that only fill the batch up.
      capacity: room for the tokens of a device's rows (static).
    """

    tokens: np.ndarray
    prompt_lengths: np.ndarray
    lengths: np.ndarray
    index: np.ndarray
    row_mask: np.ndarray
    capacity: int


def prompt_batches(
    prompts: Sequence[np.ndarray],
    shapes: Sequence[Shape],
    devices: int = 1,
    chosen: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches `B×P` of prompts alone, as `sequence_batches` makes them."""
    yield from sequence_batches(PromptRows(prompts), shapes, devices, chosen)


def sequence_batches(
    rows: Sequence[TokenizedExample],
    shapes: Sequence[Shape],
    devices: int = 1,
    chosen: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """Batches `B×T` of neighbours in length, each made when it is asked for.

    The longest come first, so that a run that needs too much memory fails at once; rows of one length keep their
    order. Each row goes to the device that has the fewest tokens, until one does not fit there, so that no device waits
    for others; `B` is the rows of the shape times the devices.

    Args:
      rows: of which batches are made.
      shapes: of a device's share.
      devices: how many share a batch.
      chosen: numbers of the rows that are batched; all of them where None.

    Raises:
      ValueError: a row fits no shape.
    """
    yield from grouped_batches(rows, 1, shapes, devices, chosen)


def grouped_batches(
    rows: Sequence[TokenizedExample],
    group: int,
    shapes: Sequence[Shape],
    devices: int = 1,
    chosen: Sequence[int] | np.ndarray | None = None,
) -> Iterator[Batch]:
    """As `sequence_batches`, of rows that stay together in groups of `group` neighbours.

    `index` and `chosen` number the groups. After they are sorted, the time is linear in them.

    Raises:
      ValueError: a row fits no shape, or the rows are not whole groups.
    """
    if len(rows) % group:
        raise ValueError(f"{len(rows)} rows are not whole groups of {group}")
    sizes = row_lengths(rows).reshape(-1, group)
    numbers = np.arange(len(sizes)) if chosen is None else np.asarray(chosen, np.int64)
    longest, totals = sizes.max(axis=1, initial=0)[numbers], sizes.sum(axis=1)[numbers]
    order, start = np.argsort(-longest, kind="stable"), 0
    numbers, longest, totals = numbers[order], longest[order], totals[order]
    while start < len(numbers):
        shape = _smallest(shapes, int(longest[start]), int(totals[start]), group)
        hands = [
            [int(numbers[start + place]) for place in hand]
            for hand in deal(map(int, totals[start:]), shape.rows // group, shape.capacity, devices)
        ]
        start += sum(map(len, hands))
        yield _pad(
            [[rows[number * group + turn] for number in hand for turn in range(group)] for hand in hands],
            [[number for number in hand for _ in range(group)] for hand in hands],
            shape,
        )


def deal(sizes: Iterable[int], most: int, capacity: int, devices: int) -> list[list[int]]:
    """Places of the first sizes, each dealt to the device with the fewest tokens, until one does not fit.

    A device takes `most` of them, and `capacity` tokens, at most.
    """
    hands: list[list[int]] = [[] for _ in range(devices)]
    held = [0] * devices
    for place, size in enumerate(sizes):
        free = [device for device in range(devices) if len(hands[device]) < most]
        least = min(free, key=held.__getitem__, default=0)
        if not free or held[least] + size > capacity:
            break
        hands[least].append(place)
        held[least] += size
    return hands


def make_batch(
    rows: Sequence[TokenizedExample], index: Sequence[int] | np.ndarray, shapes: Sequence[Shape], devices: int = 1
) -> Batch:
    """The given rows as one batch, dealt out to the devices, in the smallest shape that holds them.

    Args:
      rows: what goes into the batch.
      index: their numbers.
      shapes: of a device's share.
      devices: how many share the rows; the batch has as many times a shape's rows.

    Raises:
      ValueError: they fit no shape.
    """
    hands = deal_all(range(len(rows)), devices, lambda place: len(rows[place].tokens))
    total = max(sum(len(rows[place].tokens) for place in hand) for hand in hands)
    shape = _smallest(shapes, max(len(row.tokens) for row in rows), total, max(map(len, hands)))
    return _pad([[rows[i] for i in hand] for hand in hands], [[int(index[i]) for i in hand] for hand in hands], shape)


def deal_all(things: Iterable[Thing], devices: int, tokens: Callable[[Thing], int]) -> list[list[Thing]]:
    """All of the things dealt out, from the longest down, no device more than its share of them."""
    order = sorted(things, key=lambda thing: -tokens(thing))
    sizes = [tokens(thing) for thing in order]
    hands = deal(sizes, -(-len(order) // devices), sum(sizes), devices)
    return [[order[place] for place in hand] for hand in hands]


def _smallest(shapes: Sequence[Shape], longest: int, total: int, rows: int) -> Shape:
    """The smallest shape for rows of which one has `longest` tokens and all together have `total`."""
    for shape in sorted(shapes, key=lambda shape: (shape.capacity, shape.width)):
        if longest <= shape.width and total <= shape.capacity and rows <= shape.rows:
            return shape
    raise ValueError(f"{rows} rows of {total} tokens, the longest of {longest}, fit none of the shapes {tuple(shapes)}")


def _pad(parts: Sequence[Sequence[TokenizedExample]], index: Sequence[Sequence[int]], shape: Shape) -> Batch:
    size = len(parts) * shape.rows
    tokens = np.zeros((size, shape.width), np.int32)
    prompt_lengths = np.ones(size, np.int32)
    lengths, numbers = np.zeros((2, size), np.int32)
    for number, (part, names) in enumerate(zip(parts, index, strict=True)):
        for place, (row, name) in enumerate(zip(part, names, strict=True), start=number * shape.rows):
            tokens[place, : len(row.tokens)] = row.tokens
            prompt_lengths[place], lengths[place], numbers[place] = row.prompt_length, len(row.tokens), name
    return Batch(tokens, prompt_lengths, lengths, numbers, lengths > 0, shape.capacity)
