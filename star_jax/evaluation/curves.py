"""Learning curves, accuracy against labels, as one number. P points of a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def aubc(labels: ArrayLike, accuracy: ArrayLike) -> float:
    """Area under the budget curve: trapezoids, divided by the range of the budget.

    So it is in the unit of accuracy and in [0, 1]; a single point has that point's accuracy (Zhan et al.
    2021, "A comparative survey: benchmarking for pool-based active learning").

    Args:
      labels: `P` numbers of labels, increasing.
      accuracy: `P` accuracies in [0, 1].

    Raises:
      ValueError: no points, different lengths, or labels that do not increase.
    """
    x = np.asarray(labels, dtype=np.float64)
    y = np.asarray(accuracy, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError(f"expected as many accuracies as labels and at least one, got {x.shape} and {y.shape}")
    if (np.diff(x) <= 0).any():
        raise ValueError("the numbers of labels of a learning curve must increase")
    if x.size == 1:
        return float(y[0])
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def labels_needed(labels: ArrayLike, accuracy: ArrayLike, target: float) -> float | None:
    """Where a learning curve first reaches an accuracy, by straight lines between its points.

    Args:
      labels: `P` numbers of labels, increasing.
      accuracy: `P` accuracies.
      target: the accuracy.

    Returns:
      Number of labels; that of the first point where this reaches it already; None where no point does.
    """
    x, y = np.asarray(labels, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    reached = np.flatnonzero(y >= target)
    if not reached.size:
        return None
    at = int(reached[0])
    if at == 0:
        return float(x[0])
    share = (target - y[at - 1]) / (y[at] - y[at - 1])
    return float(x[at - 1] + share * (x[at] - x[at - 1]))


def ripl(aubc_strategy: float, aubc_random: float) -> float | None:
    """Relative improvement over passive learning, (S − R)/(1 − R) (Jukić & Šnajder 2023, arXiv 2305.14576).

    1 is a perfect curve, 0 is random selection's, below 0 is worse than that.

    Args:
      aubc_strategy: S, in [0, 1].
      aubc_random: R, in [0, 1].

    Returns:
      The improvement, or None where random selection is perfect and nothing is left to improve.
    """
    if aubc_random >= 1:
        return None
    return float((aubc_strategy - aubc_random) / (1 - aubc_random))


def aubc_of_rounds(rows: Sequence[Mapping[str, Any]]) -> float:
    """`aubc` of a run's rows; of rounds that bought no label, because all was skipped, the last one counts.

    Args:
      rows: of metrics.jsonl.
    """
    points = {row["labelled"]: row["accuracy"] for row in rows}
    return aubc(list(points), list(points.values()))
