"""How far a figure on a test set may be off because the test set is small: 95 % intervals over examples.

Shapes: `N` examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

DRAWS = 2000
"""Resamples of a bootstrap."""


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(correct: ArrayLike) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927), which holds for few examples and near 0 and 1 as well.

    Args:
      correct: `N` bool.

    Raises:
      ValueError: N is 0.
    """
    from scipy import stats  # here: it is slow to import

    right = np.asarray(correct, dtype=bool)
    if not right.size:
        raise ValueError("there is no share of nothing: no example was judged")
    wins = int(np.count_nonzero(right))
    interval = stats.binomtest(wins, right.size).proportion_ci(0.95, method="wilson")
    return Estimate(wins / right.size, float(interval.low), float(interval.high))


def bootstrap(figure: Callable[..., float], *columns: ArrayLike, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """A figure with its percentile interval over resamples of the examples (Efron 1979).

    Args:
      figure: takes as many arrays as there are columns.
      columns: `N` each, drawn together.
      draws: resamples.
      seed: of the draws.

    Raises:
      ValueError: N is 0, or the columns differ in length.
    """
    arrays = [np.asarray(column) for column in columns]
    size = len(arrays[0])
    if not size or any(len(array) != size for array in arrays):
        raise ValueError(f"expected columns of one length above 0, got {[len(array) for array in arrays]}")
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        places = rng.integers(size, size=size)
        drawn.append(figure(*(array[places] for array in arrays)))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(figure(*arrays)), float(low), float(high))
