"""Accuracy by hand, and judgement through a task's parser."""

import dataclasses

import numpy as np
import pytest

from star_jax.data.tasks.task import Task
from star_jax.evaluation.accuracy import accuracy, grouped_accuracy, judge

TASK = Task(
    name="yes-no",
    prompt=lambda row: row["text"],
    response=lambda row: row.get("label"),
    parse=lambda text: text.strip().lower() if text.strip().lower() in ("yes", "no") else None,
)


def test_judge_reads_both_texts_with_the_tasks_parser() -> None:
    correct = judge(TASK, ["Yes", " no ", "perhaps", "no"], ["yes", "no", "perhaps", "yes"])
    assert correct.dtype == bool
    assert correct.tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="shorter"):
        judge(TASK, ["yes", "no"], ["yes"])


def test_what_a_tokenizer_can_write_of_an_answer_is_right() -> None:
    exact = dataclasses.replace(TASK, parse=lambda text: " ".join(text.lower().split()) or None)
    references = ["\ufb01ne", "\ufb01ne", "a <x> b", "", "sure"]
    readings = ["fine", "fine", "a<x>b", "", "sure"]
    predictions = ["Fine", "\ufb01ne", "a<x>b", "", "Sure thing"]
    assert judge(exact, predictions, references, readings).tolist() == [True, True, True, False, False]
    assert judge(exact, predictions, references).tolist() == [False, True, False, False, False]
    # A parser of closed answers that knows none but its own spelling, and an answer that it cannot read itself.
    closed = dataclasses.replace(TASK, parse=lambda text: text if text in ("\ufb01ne", "bad") else None)
    assert judge(closed, ["fine", "bad", "fin"], ["\ufb01ne"] * 3, ["fine"] * 3).tolist() == [True, False, False]
    assert judge(closed, ["other"], ["o\ufb00er"], ["other"]).tolist() == [False]


def test_accuracy_is_the_share_of_correct() -> None:
    assert accuracy([True, False, True, True]) == 0.75
    with pytest.raises(ValueError, match="no example was judged"):
        accuracy([])


def test_groups_add_up() -> None:
    rng = np.random.default_rng(0)
    correct = rng.random(200) < 0.4
    groups = [f"group-{i}" for i in rng.integers(0, 5, 200)]
    got = grouped_accuracy(correct, groups)
    assert list(got) == sorted(set(groups))
    for name, value in got.items():
        members = [right for right, group in zip(correct, groups, strict=True) if group == name]
        assert value == sum(members) / len(members)
    assert sum(got[name] * groups.count(name) for name in got) == pytest.approx(correct.sum())
    with pytest.raises(ValueError, match="200 judgements but 1 groups"):
        grouped_accuracy(correct, ["one"])
