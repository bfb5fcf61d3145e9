"""Exact match: which predictions are right, altogether and by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from star_jax.data.tasks.task import Task


def judge(task: Task, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Whether each predicted text gives the answer of its reference, by the task's own parser: `N` bool."""
    pairs = zip(predictions, references, strict=True)
    return np.fromiter((task.is_correct(prediction, reference) for prediction, reference in pairs), dtype=bool)


def accuracy(correct: ArrayLike) -> float:
    """Share of `N` bool that are True, in [0, 1].

    Raises:
      ValueError: N is 0.
    """
    correct = np.asarray(correct, dtype=bool)
    if not correct.size:
        raise ValueError("there is no accuracy of nothing: no example was judged")
    return float(np.count_nonzero(correct) / correct.size)


def grouped_accuracy(correct: ArrayLike, groups: Sequence[str]) -> dict[str, float]:
    """Accuracy of each group, by name in alphabetical order.

    Args:
      correct: `N` bool.
      groups: the N names of the groups.

    Raises:
      ValueError: there are not as many groups as judgements.
    """
    correct = np.asarray(correct, dtype=bool)
    if len(groups) != correct.size:
        raise ValueError(f"{correct.size} judgements but {len(groups)} groups")
    members: dict[str, list[bool]] = {}
    for right, group in zip(correct, groups, strict=True):
        members.setdefault(group, []).append(right)
    return {group: accuracy(members[group]) for group in sorted(members)}
