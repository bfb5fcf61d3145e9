"""Does a model know what it knows: how calibrated its confidence is, how well its uncertainty ranks its errors.

Shapes: N examples, M bins.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Scheme = Literal["equal_width", "equal_mass"]


class ReliabilityBins(NamedTuple):
    """A reliability diagram: arrays `M` over bins, in order of confidence.

    Attributes:
      counts: examples in the bin.
      confidence: their mean confidence, NaN in an empty bin.
      accuracy: the share of them that is correct, NaN in an empty bin.
      edges: `M+1` bounds; a bin holds its upper bound, the first one its lower bound too.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    edges: np.ndarray


def brier(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean squared distance between confidence and correctness, in [0, 1] (Brier 1950, binary form).

    Args:
      confidence: `N` probabilities of being correct.
      correct: `N` bool.

    Raises:
      ValueError: there is no example, lengths differ, or a confidence is outside of [0, 1].
    """
    confidence, correct = checked_confidence(confidence, correct)
    return float(np.mean((confidence - correct) ** 2))


def reliability_bins(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, scheme: Scheme = "equal_width"
) -> ReliabilityBins:
    """Group examples by confidence.

    Args:
      confidence: `N` probabilities of being correct.
      correct: `N` bool.
      bins: M, at least 1.
      scheme: `equal_width` cuts [0, 1] evenly (Guo et al. 2017); `equal_mass` cuts at the quantiles of the
        confidences (Nixon et al. 2019, arXiv 1904.01685), where equal confidences stay together so that the result does
        not depend on the order of the examples.

    Raises:
      ValueError: there is no example, lengths differ, or a confidence is outside of [0, 1];
        `bins` is below 1, or there is no such scheme.
    """
    confidence, correct = checked_confidence(confidence, correct)
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    cuts = np.linspace(0.0, 1.0, bins + 1)
    if scheme == "equal_width":
        edges = cuts
    elif scheme == "equal_mass":
        edges = np.quantile(confidence, cuts)
    else:
        raise ValueError(f"scheme is {scheme}; it must be equal_width or equal_mass")
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count > 0, count, np.nan)
    return ReliabilityBins(
        count,
        np.bincount(index, weights=confidence, minlength=bins) / divisor,
        np.bincount(index, weights=correct, minlength=bins) / divisor,
        edges,
    )


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, scheme: Scheme = "equal_width"
) -> float:
    """Σ_bins (n_bin/N)·|accuracy − mean confidence|, in [0, 1] (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Args:
      confidence: `N` probabilities of being correct.
      correct: `N` bool.
      bins: number of bins.
      scheme: how they are cut, see `reliability_bins`.

    Raises:
      ValueError: as `reliability_bins`.
    """
    table = reliability_bins(confidence, correct, bins, scheme)
    filled = table.counts > 0
    gap = np.abs(table.accuracy[filled] - table.confidence[filled])
    return float(np.sum(table.counts[filled] * gap) / table.counts.sum())


def auroc(uncertainty: ArrayLike, error: ArrayLike) -> float | None:
    """Probability that an error is more uncertain than a correct example, ties counting a half; 0.5 is chance.

    The Mann-Whitney statistic over the number of pairs.

    Args:
      uncertainty: `N`, on any scale.
      error: `N` bool, True where the model is wrong.

    Returns:
      A number in [0, 1], or None where there are only errors or none.

    Raises:
      ValueError: lengths differ, or an uncertainty is not finite.
    """
    uncertainty = np.asarray(uncertainty, dtype=np.float64)
    error = np.asarray(error, dtype=bool)
    _same_shape(uncertainty, error)
    if not np.isfinite(uncertainty).all():
        raise ValueError("an uncertainty is not finite")
    wrong = int(np.count_nonzero(error))
    right = error.size - wrong
    if wrong == 0 or right == 0:
        return None
    from scipy import stats  # here: it is slow to import, and a run is to reach its first batch soon

    wins = stats.rankdata(uncertainty)[error].sum() - wrong * (wrong + 1) / 2
    return float(wins / (wrong * right))


def checked_confidence(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 `N`, refused where they are empty, of different length or no probabilities."""
    confidence = np.asarray(confidence, dtype=np.float64)
    correct = np.asarray(correct, dtype=np.float64)
    _same_shape(confidence, correct)
    if not confidence.size:
        raise ValueError("there is no calibration of nothing: no example was judged")
    if not ((confidence >= 0) & (confidence <= 1)).all():  # False for NaN too
        raise ValueError("a confidence is not a probability in [0, 1]")
    return confidence, correct


def _same_shape(first: np.ndarray, second: np.ndarray) -> None:
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"expected two vectors of one length, got shapes {first.shape} and {second.shape}")
