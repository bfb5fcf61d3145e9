"""Exact match: which predictions are right, altogether and by group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from star_jax.data.tasks.task import Task


def judge(
    task: Task, predictions: Sequence[str], references: Sequence[str], readings: Sequence[str] | None = None
) -> np.ndarray:
    """Whether each predicted text gives the answer of its reference, by the task's own parser: `N` bool.

    Args:
      task: the parser.
      predictions: texts of the model.
      references: the answers as somebody wrote them.
      readings: the same as the model can write them, where its tokenizer changes characters or blanks
        (`Encoder.readings`). A prediction that gives the answer of either is right, and so is one that is the reading.
    """
    readings = references if readings is None else readings
    triples = zip(predictions, references, readings, strict=True)
    return np.fromiter((_is_right(task, *texts) for texts in triples), dtype=bool)


def _is_right(task: Task, prediction: str, reference: str, reading: str) -> bool:
    if task.is_correct(prediction, reference):
        return True
    if reading == reference:
        return False
    # A parser of closed answers may not know the reading; whoever wrote the very tokens of the reference is right.
    return task.is_correct(prediction, reading) or (
        task.parse(reference) is not None and prediction.split() == reading.split()
    )


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
