"""Where a learning curve is going: a power law through its points, and how far that can be trusted.

accuracy(n) = a − b·n^(−c), n labels, as learning curves of classifiers are extrapolated (Figueroa et al. 2012,
"Predicting sample size required for classification performance", BMC Med Inform Decis Mak 12:8).

Shapes: `P` points of a curve, `C` curves, `S` draws of the bootstrap, `E` exponents that are tried.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

EXPONENTS = np.geomspace(0.05, 3, 60)
"""`E` values of c that are tried: from nearly the logarithm of n to as good as a step."""

FEWEST_POINTS = 4
"""Points of a curve from which on it is extrapolated: one more than the law has parameters."""

DRAWS, LEVEL = 2000, 0.95
"""Resamples of the bootstrap, and the share that an interval is meant to hold."""

FARTHEST = 10.0
"""Multiple of the labels so far beyond which a number of labels is no forecast."""


class PowerLaw(NamedTuple):
    """a − b·n^(−c), each a number or an array of one shape.

    Attributes:
      a: where it levels off, at most 1.
      b: how far below it is at one label, at least 0.
      c: how fast it comes near.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def at(self, labels: ArrayLike) -> np.ndarray:
        """The accuracy with a number of labels."""
        return np.asarray(self.a - self.b * np.asarray(labels, np.float64) ** -self.c)

    def labels_for(self, accuracy: float) -> np.ndarray:
        """The number of labels at which it has an accuracy; infinite where it never has."""
        gap = self.a - accuracy
        reached = gap > 0
        with np.errstate(over="ignore"):
            found = (self.b / np.where(reached, gap, 1)) ** (1 / self.c)
        return np.where(reached, found, np.inf)


def fit_power_law(labels: ArrayLike, curves: ArrayLike) -> PowerLaw:
    """The law of least squares through each curve, with 0 ≤ b and a ≤ 1.

    Point j of P counts with the weight j/P, as in Figueroa et al.: what comes next is more like the last points.

    Args:
      labels: `P` increasing numbers of labels, at least 1.
      curves: `…×P` accuracies.

    Returns:
      a, b and c, of the curves' shape without its last axis.

    Raises:
      ValueError: fewer than three points, or labels that do not increase.
    """
    x, y = np.asarray(labels, np.float64), np.asarray(curves, np.float64)
    if x.ndim != 1 or x.size < 3 or y.shape[-1:] != x.shape or x[0] < 1 or (np.diff(x) <= 0).any():
        raise ValueError(f"a power law needs three points with increasing labels, got {x.tolist()} and {y.shape}")
    # 1. For each c, a line through (n^-c, y): in units of the first n, so that powers stay moderate.
    powers = (x / x[0]) ** -EXPONENTS[:, None]
    weights = np.arange(1, x.size + 1) / x.size
    centred = powers - np.average(powers, axis=1, weights=weights)[:, None]
    b = np.maximum(-(y @ (weights * centred).T) / (np.square(centred) @ weights), 0)
    a = np.average(y, axis=-1, weights=weights)[..., None] + b * np.average(powers, axis=1, weights=weights)
    # 2. Where it would level off above 1, the best line that levels off there.
    bound = np.maximum((1 - y) @ (weights * powers).T / (np.square(powers) @ weights), 0)
    a, b = np.minimum(a, 1), np.where(a > 1, bound, b)
    # 3. The c with the least squares.
    errors = np.square(y[..., None, :] - a[..., None] + b[..., None] * powers) @ weights
    best = errors.argmin(axis=-1)
    c = EXPONENTS[best]
    a, b = (np.take_along_axis(values, best[..., None], axis=-1)[..., 0] for values in (a, b))
    return PowerLaw(a, b * x[0] ** c, c)


class Estimate(NamedTuple):
    """A figure and its 95 % interval; infinite where the curve never gets there."""

    value: float
    low: float
    high: float


class CurveForecast(NamedTuple):
    """The mean of some curves, extrapolated.

    Attributes:
      law: through the mean curve.
      drawn: `S` laws through resamples of it.
      noise: standard deviation of a point of the mean curve around its law.
      last: labels of the last point.
    """

    law: PowerLaw
    drawn: PowerLaw
    noise: float
    last: float

    def accuracy(self, labels: float, seed: int = 0) -> Estimate:
        """The accuracy that a round with so many labels will be measured to have, the mean of as many curves."""
        noise = np.random.default_rng(seed).normal(0, self.noise, self.drawn.a.shape)
        low, high = np.quantile(np.clip(self.drawn.at(labels) + noise, 0, 1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(self.law.at(labels)), float(low), float(high))

    def labels_for(self, accuracy: float) -> Estimate:
        """The number of labels at which the law has an accuracy."""
        found = np.sort(self.drawn.labels_for(accuracy))
        low, high = (found[round(share * (len(found) - 1))] for share in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Estimate(float(self.law.labels_for(accuracy)), float(low), float(high))


def forecast(
    labels: ArrayLike, curves: ArrayLike, tests: int | None = None, *, draws: int = DRAWS, seed: int = 0
) -> CurveForecast | None:
    """Extrapolates the mean of some curves, with a bootstrap over rounds.

    Each draw adds noise to the points of the law through the mean curve, and fits again (Efron & Tibshirani 1993,
    section 9.5). The noise is that of the runs' own points around a law of their own, over √C, and at least that of
    counting right answers in a test set; it is taken for normal, equal in all rounds, and independent from one to the
    next. What the intervals do not know is whether the curve goes on as a power law: on recorded runs they held less
    often than they are meant to (experiments/results/README.md).

    Args:
      labels: `P` increasing numbers of labels.
      curves: `C×P` accuracies, those of one strategy with several seeds.
      tests: size of the test set; its share of the noise is left out where None.
      draws: S.
      seed: of the draws.

    Returns:
      The forecast; None for fewer than `FEWEST_POINTS` points.
    """
    x, y = np.asarray(labels, np.float64), np.asarray(curves, np.float64)
    count, points = y.shape
    if points < FEWEST_POINTS:
        return None
    own = fit_power_law(x, y)
    residuals = y - PowerLaw(*(values[:, None] for values in own)).at(x)
    variance = float(np.square(residuals).sum()) / (count * (points - 3))
    counting = 0.0 if tests is None else float((y * (1 - y)).mean()) / tests
    noise = float(np.sqrt(max(variance, counting) / count))
    law = fit_power_law(x, y.mean(axis=0))
    rng = np.random.default_rng(seed)
    resampled = law.at(x) + rng.normal(0, noise, (draws, points))
    return CurveForecast(law, fit_power_law(x, resampled), noise, float(x[-1]))
