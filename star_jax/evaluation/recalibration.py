"""Confidence that means what it says: from a model's raw confidence to the share of right answers, from few labels.

Shapes: `N` answers that were judged, `M` others.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from star_jax.evaluation.calibration import checked_confidence

LEAST_JUDGED = 10
"""Answers that must have been judged before a confidence is calibrated; fewer say too little."""

SOURCES = ("auto", "validation", "cross-fit", "test", "none")
"""What a confidence can be calibrated on, besides a labelled file."""

SLOPE_SD, OFFSET_SD = 1.0, 2.0
"""Standard deviations of the prior on slope and offset, in logits, around 1 and 0: the raw confidence as it is."""

_LEAST = 1e-4
"""Raw confidences nearer to 0 or 1 count as this far from it: beyond, the probability of a text is noise."""

_MANY = 1000
"""Confidences whose mean is taken one by one; of more, as many quantiles stand for all."""


class Recalibration(NamedTuple):
    """A calibrated confidence, σ(slope · logit(raw) + offset).

    Attributes:
      slope: at least 0, so that the order of answers stays what it was.
      offset: in logits.
      covariance: `2×2`, how uncertain slope and offset are (Laplace's approximation).
      judged: N, the answers that it was fitted on.
    """

    slope: float
    offset: float
    covariance: np.ndarray
    judged: int

    def __call__(self, raw: ArrayLike) -> np.ndarray:
        """Calibrated confidences `M` of raw ones `M`."""
        return _sigmoid(self.slope * _logits(raw) + self.offset)

    def accuracy_interval(self, raw: ArrayLike, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % interval of the accuracy to expect of answers with these raw confidences `M`.

        It knows how few answers were judged, not how other answers may differ from them.

        Raises:
          ValueError: M is 0.
        """
        logits = _logits(raw)
        if not logits.size:
            raise ValueError("there is no accuracy of nothing: no answer was given")
        if logits.size > _MANY:
            logits = np.quantile(logits, (np.arange(_MANY) + 0.5) / _MANY)
        rng = np.random.default_rng(seed)
        drawn = rng.multivariate_normal([self.slope, self.offset], self.covariance, draws)
        drawn[:, 0] = np.maximum(drawn[:, 0], 0)
        means = [float(_sigmoid(slope * logits + offset).mean()) for slope, offset in drawn]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)


def fit_recalibration(raw: ArrayLike, correct: ArrayLike) -> Recalibration:
    """Platt scaling of a raw confidence (Platt 1999), held back where labels are few.

    A curve of two numbers is all that some dozens of labels can carry; isotonic regression needs about a thousand
    (Niculescu-Mizil & Caruana 2005). Two things hold it back. Targets are Platt's (N₊ + 1)/(N₊ + 2) and 1/(N₋ + 2), so
    that ten right answers of ten do not promise certainty; and a Gaussian prior around the raw confidence, which a few
    dozen labels outweigh.

    Args:
      raw: `N` raw confidences of answers that were not trained on.
      correct: `N` bool.

    Raises:
      ValueError: there is no answer, lengths differ, or a confidence is outside of [0, 1].
    """
    from scipy import optimize  # here: it is slow to import

    confidence, right = checked_confidence(raw, correct)
    logits, wins = _logits(confidence), float(right.sum())
    losses = len(right) - wins
    targets = np.where(right > 0, (wins + 1) / (wins + 2), 1 / (losses + 2))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = parameters
        scores = slope * logits + offset
        nll = np.sum(np.logaddexp(0, scores) - targets * scores)
        penalty = ((slope - 1) / SLOPE_SD) ** 2 / 2 + (offset / OFFSET_SD) ** 2 / 2
        residual = _sigmoid(scores) - targets
        gradient = [
            np.sum(residual * logits) + (slope - 1) / SLOPE_SD**2,
            np.sum(residual) + offset / OFFSET_SD**2,
        ]
        return float(nll + penalty), np.asarray(gradient)

    found = optimize.minimize(
        loss, np.asarray([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]
    )
    slope, offset = map(float, found.x)
    likely = _sigmoid(slope * logits + offset)
    weight = likely * (1 - likely)
    cross = float(np.sum(weight * logits))
    precision = np.asarray(
        [
            [np.sum(weight * logits**2) + 1 / SLOPE_SD**2, cross],
            [cross, np.sum(weight) + 1 / OFFSET_SD**2],
        ]
    )
    return Recalibration(slope, offset, np.linalg.inv(precision), len(right))


def _logits(confidence: ArrayLike) -> np.ndarray:
    clipped = np.clip(np.asarray(confidence, np.float64), _LEAST, 1 - _LEAST)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    from scipy import special

    return np.asarray(special.expit(scores))
