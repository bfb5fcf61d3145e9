"""Comparison of two strategies over the same seeds: differences seed by seed, their spread and their tests."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class PairedDifference(NamedTuple):
    """Of a − b over paired runs.

    Attributes:
      mean: mean difference.
      sd: sample standard deviation of the differences, None for one pair.
      n: number of pairs.
      t_p_value: two-sided paired t test; None for one pair and where the differences do not vary.
      wilcoxon_p_value: two-sided Wilcoxon signed-rank test; None for one pair and where all differences are 0.
      interval: 95 % confidence interval of the mean after Student, None for one pair.
    """

    mean: float
    sd: float | None
    n: int
    t_p_value: float | None
    wilcoxon_p_value: float | None
    interval: tuple[float, float] | None


def mean_and_sd(values: ArrayLike) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n − 1) of `n` values; no deviation for a single one.

    Raises:
      ValueError: there is no value, or not one axis of them.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"expected at least one value, got shape {array.shape}")
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def paired_difference(a: ArrayLike, b: ArrayLike) -> PairedDifference:
    """Compare two lists of results, the i-th of each from the same seed.

    Args:
      a: results of one strategy.
      b: results of the other, as many.

    Raises:
      ValueError: no results, or lists of different length.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired results must be of one length, got shapes {first.shape} and {second.shape}")
    difference = first - second
    mean, sd = mean_and_sd(difference)
    n = difference.size
    if sd is None:
        return PairedDifference(mean, None, n, None, None, None)

    from scipy import stats  # here: it is slow to import, and needed only once runs have finished

    # Differences that are equal but for the rounding of a − b would make a t statistic out of rounding errors.
    rounding = 4 * np.finfo(np.float64).eps * max(np.abs(first).max(), np.abs(second).max())
    t_p_value = None
    if sd > rounding:
        t_p_value = float(2 * stats.t.sf(abs(mean) / (sd / np.sqrt(n)), n - 1))
    wilcoxon_p_value = None
    if np.abs(difference).max() > rounding:
        wilcoxon_p_value = float(stats.wilcoxon(np.where(np.abs(difference) > rounding, difference, 0)).pvalue)
    half = float(stats.t.ppf(0.975, n - 1) * sd / np.sqrt(n))
    return PairedDifference(mean, sd, n, t_p_value, wilcoxon_p_value, (mean - half, mean + half))


class Slope(NamedTuple):
    """Of a line through points: its slope and, where it can be had, a 95 % confidence interval of that."""

    value: float
    interval: tuple[float, float] | None


def slope(x: ArrayLike, curves: ArrayLike) -> Slope:
    """Slope of the least-squares line through some curves, and how sure it is.

    Of several curves, which are independent, each has its own slope, and the interval is Student's for their mean. Of a
    single one it is that of the regression, so it takes the scatter around the line for all there is.

    Args:
      x: `P` places, at least two of them different.
      curves: `C×P`, the curves' heights there.

    Raises:
      ValueError: fewer than two points, or they are all in one place.
    """
    places, heights = np.asarray(x, dtype=np.float64), np.asarray(curves, dtype=np.float64)
    if places.size < 2 or np.ptp(places) == 0:
        raise ValueError("a slope needs two points that are not in one place")
    from scipy import stats  # here, as in `paired_difference`

    centred = places - places.mean()
    slopes = heights @ centred / (centred @ centred)
    mean, sd = mean_and_sd(slopes)
    if sd is not None:
        freedom, error = slopes.size - 1, sd / math.sqrt(slopes.size)
    elif places.size > 2:
        left = heights[0] - heights[0].mean() - mean * centred
        freedom = places.size - 2
        error = math.sqrt(float(left @ left) / freedom / float(centred @ centred))
    else:
        return Slope(mean, None)
    half = float(stats.t.ppf(0.975, freedom) * error)
    return Slope(mean, (mean - half, mean + half))


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % confidence interval of a share seen among `n` independent cases, after Wilson; within [0, 1].

    Raises:
      ValueError: n is not positive.
    """
    if n < 1:
        raise ValueError(f"a share of {n} cases has no interval")
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The share itself is in it, also where rounding says otherwise.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))
