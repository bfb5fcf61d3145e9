"""Accuracy on a test set of which only some examples get a label: which to label, and what follows from them.

Examples are drawn one after the other without replacement, those more often that the model is unsure of, and weighted
so that the estimate is unbiased whatever the probabilities were: LURE (Farquhar et al. 2021, arXiv 2101.11665, as
active testing uses it: Kossen et al. 2021, arXiv 2103.05331). What is averaged is how far an answer is better or worse
than the model's own confidence says, which is added back for all examples: a difference estimator, as in active
statistical inference (Zrnic and Candès 2024, arXiv 2403.03208). A good confidence makes the interval narrow, a bad one
makes it wide, and neither makes the estimate biased. With few labels, and a confidence that is nearly always the same
and sometimes wrong, the interval may hold less often than it says.

Shapes: `N` test examples, `M` of them with a label.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from star_jax.evaluation.intervals import Estimate

UNIFORM = 0.5
"""Share of the draws that does not look at confidence: no example is drawn less than half as often as at random, so
that no weight is large where the model is sure and wrong (a defensive mixture, Hesterberg 1995)."""


class Draws(NamedTuple):
    """Which examples are labelled.

    Attributes:
      places: `M`, in the order in which they were drawn.
      probabilities: `M`, of each, among those that were left.
    """

    places: np.ndarray
    probabilities: np.ndarray


def draw(confidence: ArrayLike, count: int, seed: int = 0) -> Draws:
    """Draws examples to label. The first of many draws are those of few: a budget may be raised later.

    Args:
      confidence: `N`, the model's probability that its own answer is right.
      count: M.
      seed: of the draws.

    Raises:
      ValueError: a confidence is no probability, or M is not from 1 to N.
    """
    sure = np.asarray(confidence, np.float64)
    if sure.ndim != 1 or not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("confidences must be probabilities")
    if not 1 <= count <= sure.size:
        raise ValueError(f"cannot label {count} of {sure.size} examples")
    # An answer's deviation from its confidence has this standard deviation, where that is calibrated.
    unsure = np.sqrt(sure * (1 - sure))
    weights = np.full(sure.size, UNIFORM)
    weights += (1 - UNIFORM) * (unsure / unsure.mean() if unsure.any() else 1)
    # Gumbel noise on the logarithms orders examples as draws without replacement do (Yellott 1977).
    noise = np.random.default_rng(seed).gumbel(size=sure.size)
    places = np.argsort(-(np.log(weights) + noise), kind="stable")[:count]
    drawn = weights[places]
    left = weights.sum() - np.concatenate([[0], np.cumsum(drawn)[:-1]])
    return Draws(places, drawn / left)


def estimate(confidence: ArrayLike, draws: Draws, correct: ArrayLike) -> Estimate:
    """Accuracy on all N examples, unbiased but for being kept within 0 and 1, with a 95 % interval.

    The interval is that of Student's t with M − 1 degrees of freedom. Its variance is that of the terms, and of one
    more that is as far off as a wrong answer of a sure model, so that a run of right answers does not look certain.

    Args:
      confidence: `N`, that the draws were made with.
      draws: from `draw`.
      correct: `M` bool, whether the model's answers to the drawn examples are right.

    Raises:
      ValueError: M is less than 2, or there are not as many judgements as draws.
    """
    from scipy import stats  # here: it is slow to import

    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, bool)
    count, size = len(draws.places), sure.size
    if right.shape != (count,) or count < 2:
        raise ValueError(f"{right.size} judgements of {count} draws; there must be one for each of at least two")
    weights, terms = level_weights(size, count), unbiased_terms(right - sure[draws.places], draws.probabilities, size)
    value = float(weights @ terms)
    # Each term is an unbiased estimate given those before it, so their deviations are uncorrelated.
    spread = float(np.square(weights) @ np.square(terms - value)) / max(1 - float(np.square(weights).sum()), 1 / count)
    error = np.sqrt(spread + (1 - count / size) / (count + 1) ** 2) if count < size else 0.0
    half = float(stats.t.ppf(0.975, count - 1) * error)
    accuracy = float(np.clip(sure.mean() + value, 0, 1))
    return Estimate(accuracy, max(accuracy - half, 0.0), min(accuracy + half, 1.0))


def unbiased_terms(values: np.ndarray, probabilities: np.ndarray, size: int) -> np.ndarray:
    """An estimate of the mean of all N values by each draw and those before it, `M` (Farquhar et al., equation 6).

    Args:
      values: `M`, of the drawn examples in their order.
      probabilities: `M`, as `Draws.probabilities`.
      size: N.
    """
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    return (before + values / probabilities) / size


def level_weights(size: int, count: int) -> np.ndarray:
    """Weights `M` of the terms whose sum is LURE: those for which all draws would count the same at uniform
    probabilities (Farquhar et al., section 4.2). They add up to 1."""
    if count == size:  # the last term has seen all
        return np.eye(count)[-1]
    number = np.arange(1, count + 1)
    return size * (size - count) / (count * (size - number) * (size - number + 1.0))
