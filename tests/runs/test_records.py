"""Rows of the files that a round leaves behind."""

from types import SimpleNamespace

import numpy as np

from star_jax.active.state import RoundInfo
from star_jax.annotators.annotator import Answer
from star_jax.data.examples import Prompt
from star_jax.data.tasks.task import Task
from star_jax.runs.records import queried_rows

TASK = Task("letters", lambda row: "", lambda row: None, str, group=lambda prompt: prompt.text[:1])
PROBLEM = SimpleNamespace(prompts=[Prompt(f"p{number}", f"{letter}?\n") for number, letter in enumerate("abc")])
INFO = RoundInfo(np.array([2, 0]), 2, 0.5, answers=[Answer("p2", "yes", "Ada"), Answer("p0", None)])


def test_a_pick_is_written_with_its_prompt_the_models_guess_and_its_uncertainty():
    figures = {"scores": np.array([0.5, 9, 0.25]), "base": np.array([1.0, 9, 2]), "full": np.array([3.0, 9, 4])}
    info = INFO._replace(guesses=["no", ""], **figures)
    first, second = queried_rows(TASK, PROBLEM, info, {2: " yes"})
    assert first == {
        "id": "p2",
        "prompt": "c?\n",
        "prediction": "no",
        "score": 0.25,
        "uncertainty": 4.0,
        "base_uncertainty": 2.0,
        "full_uncertainty": 4.0,
        "rank": 0,
        "group": "c",
        "response": " yes",
        "annotator": "Ada",
    }
    assert second["prediction"] == ""
    assert (second["id"], second["rank"], second["response"], second["skipped"]) == ("p0", 1, None, True)
    assert queried_rows(TASK, PROBLEM, info._replace(full=None), {})[1]["uncertainty"] == 1.0


def test_figures_that_no_strategy_computed_are_none():
    for row in queried_rows(TASK, PROBLEM, INFO, {}):
        names = ("prediction", "score", "uncertainty", "base_uncertainty", "full_uncertainty", "response")
        assert [row[name] for name in names] == [None] * 6
        assert row["prompt"]
