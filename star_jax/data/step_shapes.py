"""Which static shapes training steps have: a ladder that is the same all over a run, and those of it that pay.

A training knows all of its steps before the first: which rows each has, and how long they are. So it takes from the
ladder what leaves least room on exactly these. A few rungs are for steps of rows like those that will come, and serve
all trainings of a run. Any other is a program that a training compiles for itself, where it is worth one: once labels
have come in that are longer or shorter than thought. What is taken depends on rows and key of the training alone, so
that a run that is taken up again takes the same.

Shapes: `T` tokens of a row, prompt and response together.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from star_jax.data.batching import Shape, deal_all
from star_jax.data.bucketing import StepLadder, choose_sizes

USUAL_SHAPES = 3
"""Capacities at most that serve all trainings, besides the one that holds any step."""

RUNGS_AN_OCTAVE = 6
"""Capacities between one and its double: steps of any sizes leave 6 % of room on average."""

OCTAVES = 3
"""How often the largest capacity is halved at most; smaller steps, the rest of an epoch say, take the smallest."""

WIDTHS = (1, 0.75, 0.5, 0.375, 0.25)
"""Widths of a capacity at most, as parts of the longest row."""

SIMULATED_STEPS = 256
"""Random steps from which the usual capacities are chosen."""


def step_ladder(steps: Sequence[Sequence[int]], rows: int, longest: int, devices: int = 1) -> StepLadder:
    """Shapes for steps of so many rows.

    Args:
      steps: tokens of each row, for steps like those that will come, as far as that is known.
      rows: of a step.
      longest: tokens of the longest row that may come.
      devices: that share a step.
    """
    share = -(-rows // devices)
    whole = share * longest
    exact = (whole * 2 ** (-rung / RUNGS_AN_OCTAVE) for rung in range(OCTAVES * RUNGS_AN_OCTAVE + 1))
    widest = _widest(steps, min(USUAL_SHAPES, len(steps)), whole, devices) | {whole: longest}
    capacities = {*widest, *(min(whole, _rounded(math.ceil(capacity))) for capacity in exact)}
    widths = {min(longest, -(-math.ceil(longest * part) // 16) * 16) for part in WIDTHS}
    # Rows that are narrower than that do not fill the capacity.
    shapes = tuple(
        sorted(
            (Shape(share, width, room) for room in capacities for width in widths if share * width >= room),
            key=lambda shape: (shape.capacity, shape.width),
        )
    )
    return StepLadder(shapes, tuple(_narrowest(shapes, size, width) for size, width in sorted(widest.items())))


def _widest(steps: Sequence[Sequence[int]], most: int, whole: int, devices: int) -> dict[int, int]:
    """The capacities with the least room over these steps, and the longest row of the steps that go to each."""
    if not most:
        return {}
    totals = [min(whole, _rounded(total)) for total in fullest_hands(steps, devices)]
    sizes = choose_sizes(totals, most, multiple=1)
    return _longest_rows(steps, [sizes[bisect_left(sizes, total)] for total in totals])


def _longest_rows(steps: Sequence[Sequence[int]], sizes: Sequence[int]) -> dict[int, int]:
    """The longest row of all steps of a size."""
    widest: dict[int, int] = {}
    for step, size in zip(steps, sizes, strict=True):
        widest[size] = max(widest.get(size, 0), *step)
    return widest


def random_steps(
    labelled: Sequence[int] | np.ndarray, replay: Sequence[int], sizes: tuple[int, int]
) -> list[list[int]]:
    """Tokens of the rows of random training steps, the same for the same lengths.

    Args:
      labelled: tokens of rows like those that will be labelled.
      replay: tokens of the replay rows.
      sizes: how many of both a step has.
    """
    drawn = []
    for lengths, count in zip((labelled, replay), sizes, strict=True):
        generator, known = np.random.default_rng(0), np.asarray(lengths, np.int64)
        steps = range(SIMULATED_STEPS if count and len(known) else 0)
        drawn.append([generator.choice(known, count).tolist() for _ in steps])
    return [[*new, *old] for new, old in zip_longest(*drawn, fillvalue=())]


def shapes_of_steps(
    ladder: StepLadder, steps: Sequence[Sequence[int]], program: float, devices: int = 1
) -> tuple[Shape, ...]:
    """The shapes of a ladder with the smallest Σ capacity over these steps, programs that are not usual included.

    Args:
      ladder: shapes that steps may have.
      steps: tokens of each row, for every step of a training.
      program: tokens that a device trains on in the time that it takes to compile a program.
      devices: that share a step.

    Returns:
      A shape for each capacity that is used.

    Raises:
      ValueError: a step fits no shape.
    """
    totals = fullest_hands(steps, devices)
    capacities = sorted({shape.capacity for shape in ladder.shapes})
    if max(totals) > capacities[-1]:
        raise ValueError(f"a step of {max(totals)} tokens on a device fits none of the shapes {ladder.shapes}")
    usual = {shape.capacity: shape.width for shape in ladder.usual}
    prices = [0.0 if capacity in usual else program for capacity in capacities]
    rungs = [bisect_left(capacities, total) for total in totals]
    chosen = _cheapest(capacities, prices, np.bincount(rungs, minlength=len(capacities)))
    # Each as wide as the longest row of the steps that go there, or as it usually is.
    widest = _longest_rows(steps, [capacities[chosen[bisect_left(chosen, rung)]] for rung in rungs])
    return tuple(
        _narrowest(ladder.shapes, size, max(width, usual.get(size, 0))) for size, width in sorted(widest.items())
    )


def fullest_hands(steps: Sequence[Sequence[int]], devices: int) -> list[int]:
    """Tokens of each step on the device that has most of them, for which the others wait."""
    return [max(map(sum, deal_all(step, devices, lambda length: length))) for step in steps]


def _cheapest(capacities: Sequence[int], prices: Sequence[float], counts: np.ndarray) -> list[int]:
    """The rungs with the least cost: their prices, and for each step the smallest capacity of theirs that holds it.

    Args:
      capacities: of the rungs, increasing.
      prices: of each.
      counts: steps of which each is the smallest rung.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    # Least cost of all steps up to a rung where that is taken, and the rungs that are.
    least: list[tuple[float, list[int]]] = [(0.0, [])]
    for rung, (capacity, price) in enumerate(zip(capacities, prices, strict=True)):
        ways = [
            (cost + price + capacity * (before[rung + 1] - before[taken[-1] + 1 if taken else 0]), taken)
            for cost, taken in least
        ]
        cost, taken = min(ways, key=lambda way: way[0])
        least.append((cost, [*taken, rung]))
    last = int(np.flatnonzero(counts)[-1])
    return min((way for way in least[1:] if way[1][-1] >= last), key=lambda way: way[0])[1]


def _narrowest(shapes: Sequence[Shape], capacity: int, width: int) -> Shape:
    """The narrowest shape of that capacity for rows of that width, or of the next capacity that has one."""
    fitting = [shape for shape in shapes if shape.capacity >= capacity and shape.width >= width]
    if not fitting:
        raise ValueError(f"a row of {width} tokens fits none of the shapes {tuple(shapes)}")
    return min(fitting, key=lambda shape: (shape.capacity, shape.width))


def _rounded(capacity: int) -> int:
    """Up to a multiple of at most a 16th of it, and of 64 at most, a power of two."""
    multiple = min(64, 1 << max(0, (capacity // 16).bit_length() - 1))
    return -(-capacity // multiple) * multiple
