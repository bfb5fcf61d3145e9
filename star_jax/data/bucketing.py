"""Which static shapes batches have: chosen once a run, from the lengths of its rows, so that there is little padding.

Each shape is a program to compile. What fills them is in `batching`.

Shapes: `T` tokens of a row, prompt and response together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from star_jax.data.batching import Shape, deal

SHORT = 64
"""Rows and lines of fewer tokens than this get sizes to the token: rounding up would cost more than odd shapes do."""


class StepLadder(NamedTuple):
    """Shapes that the training steps of a run may have; which of them a training takes, `step_shapes` says.

    Attributes:
      shapes: of a device's share of a step, in increasing order; the last holds any step.
      usual: those of them that are counted as free, since other trainings use them too; a training whose rows are wider
        takes a wider one, which is a program more.
    """

    shapes: tuple[Shape, ...] = ()
    usual: tuple[Shape, ...] = ()


class Shapes(NamedTuple):
    """The shapes of a run's batches, the same for all of its rounds.

    Attributes:
      prompts: of prompts alone.
      sequences: of prompts with a response.
      training: that training steps may have; empty where nothing is trained.
    """

    prompts: tuple[Shape, ...]
    sequences: tuple[Shape, ...]
    training: StepLadder = StepLadder()


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
    capacity = sizes[:, None] * (rows[1:, None] - rows[:-1])  # what those of start..end take with the size of the end
    return tuple(int(size) for size in sizes[_run_ends(capacity, most)])


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


def prompt_shapes(lengths: Sequence[int] | np.ndarray, rows: int, most: int, devices: int = 1) -> tuple[Shape, ...]:
    """Shapes of prompts that are answered together: always so many, for each costs as much as the batch is long.

    Args:
      lengths: tokens of each prompt.
      rows: of a batch; fewer where there are not so many for each device.
      most: number of shapes at most.
      devices: that share the prompts.
    """
    known = _longest_first(lengths)
    if not known.size:
        return ()
    rows = min(rows, -(-len(known) // devices))
    batches = _filled(known, rows, int(known.sum()), devices)
    widths = choose_sizes(batches.longest, most, multiple=_multiple(int(known[0])))
    shapes = []
    for low, width in zip((0, *widths), widths, strict=False):
        within = (low < batches.longest) & (batches.longest <= width)
        shapes.append(Shape(rows, width, _rounded(int(batches.tokens[within].max()))))
    return tuple(shapes)


def budget_shapes(
    lengths: Sequence[int] | np.ndarray, rows: int, most: int, longest: int, devices: int = 1
) -> tuple[Shape, ...]:
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
    known = _longest_first(lengths)
    if not known.size:
        return (Shape(rows, longest, rows * longest),)
    count = -(-len(known) // (rows * devices))
    capacity = _rounded(max(longest, -(-int(known.sum()) // (count * devices))))
    while len((batches := _filled(known, len(known), capacity, devices)).longest) > count:
        capacity = _rounded(capacity + 1)
    first = _round_up(batches.longest, _multiple(int(known[0])))
    widths, kind, counts = np.unique(first, return_inverse=True, return_counts=True)
    # The only batch of a width may be the last one, of few rows; those of later rows shall be full all the same.
    most_rows = capacity // widths
    np.maximum.at(most_rows, kind, batches.rows)
    before = np.concatenate([[0], np.cumsum(counts)])
    held = np.zeros((len(widths), len(widths)), np.int64)  # [end, start]: the most rows of a batch of start..end
    for end in range(len(widths)):
        held[end, : end + 1] = np.maximum.accumulate(most_rows[end::-1])[::-1]
    ends = _run_ends(widths[:, None] * held * (before[1:, None] - before[:-1]), most)
    starts = [0, *(end + 1 for end in ends[:-1])]
    shapes = [Shape(int(held[end, start]), int(widths[end]), capacity) for start, end in zip(starts, ends, strict=True)]
    if longest > shapes[-1].width:
        shapes.append(Shape(max(1, capacity // longest), longest, capacity))
    return tuple(shapes)


def _longest_first(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.sort(np.asarray(lengths, np.int64))[::-1]


class _Filled(NamedTuple):
    """What batches hold, those of the longest rows first.

    Attributes:
      longest: tokens of each batch's longest row.
      tokens: of its fullest device.
      rows: of the device that has the most.
    """

    longest: np.ndarray
    tokens: np.ndarray
    rows: np.ndarray


def _filled(known: np.ndarray, most: int, capacity: int, devices: int) -> _Filled:
    """Lengths, from the longest down, in batches of a hand for every device: see `deal`."""
    if devices == 1:
        return _filled_alone(known, most, capacity)
    found, start = [], 0
    while start < len(known):
        hands = deal(map(int, known[start:]), most, capacity, devices)
        sizes = [sum(int(known[start + place]) for place in hand) for hand in hands]
        found.append((int(known[start]), max(sizes), max(map(len, hands))))
        start += sum(map(len, hands))
    return _Filled(*np.asarray(found, np.int64).T)


def _filled_alone(known: np.ndarray, most: int, capacity: int) -> _Filled:
    """The same for one device, which takes neighbours until one does not fit: one search a batch, not a row."""
    totals = np.concatenate([[0], np.cumsum(known)])
    starts = [0]
    while starts[-1] < len(known):
        start = starts[-1]
        fitting = int(np.searchsorted(totals, totals[start] + capacity, side="right")) - 1
        starts.append(min(start + most, fitting))
    edges = np.asarray(starts)
    return _Filled(known[edges[:-1]], np.diff(totals[edges]), np.diff(edges))


def likely_lengths(prompts: Sequence[int] | np.ndarray, responses: Sequence[int] | np.ndarray) -> np.ndarray:
    """Lengths of prompts with responses that are hidden: each prompt gets the length of one that may be looked at.

    Args:
      prompts: tokens of each prompt.
      responses: tokens of each response that may be looked at.

    Returns:
      As many as there are prompts, the same for the same lengths; none where no response is known.
    """
    if not len(responses):
        return np.zeros(0, np.int64)
    return np.asarray(prompts, np.int64) + np.random.default_rng(0).choice(
        np.asarray(responses, np.int64), len(prompts)
    )


def _multiple(largest: int, multiple: int = 16) -> int:
    return multiple if largest >= SHORT else 1


def _rounded(size: int, multiple: int = 64) -> int:
    return -(-size // _multiple(size, multiple)) * _multiple(size, multiple)
