"""What the curves say: labels saved, whether going on pays, from curves whose answer is known."""

from pathlib import Path

import numpy as np
import pytest

from star_jax.report.findings import FEWEST_SEEDS, said_result, said_saving, said_trend, saving, trend
from star_jax.report.read import Comparison, Run

LABELS = [60, 110, 160, 210]


def a_run(strategy, seed, accuracies, labels=LABELS):
    rows = [
        {"round": number, "labelled": count, "accuracy": value}
        for number, (count, value) in enumerate(zip(labels, accuracies, strict=False))
    ]
    run = Run(Path("nowhere"), strategy, seed, rows, finished=True)
    run.__dict__.update(config={"loop": {"labels_per_round": 50}}, facts={})
    return run


def compared(ours, theirs, labels=LABELS):
    runs = [
        [a_run(name, seed, one, labels) for seed, one in enumerate(curves)]
        for name, curves in (("star", ours), ("random", theirs))
    ]
    return Comparison("star", *runs, areas=[(0.0, 0.0)] * len(ours))


def test_labels_are_saved_where_the_better_curve_first_has_what_the_other_ends_with():
    found = saving(compared([[0.3, 0.5, 0.7, 0.8]], [[0.3, 0.4, 0.5, 0.6]]))
    assert (found.accuracy, found.theirs, found.total) == (0.6, 210, 210)
    assert found.ours == pytest.approx(135)  # half way from 110 to 160
    assert found.interval is None
    said = said_saving(compared([[0.3, 0.5, 0.7, 0.8]], [[0.3, 0.4, 0.5, 0.6]])).replace("\N{NO-BREAK SPACE}", " ")
    assert "star saved about 75 labels, 36 %" in said
    assert "one seed, which cannot say how much of it is chance" in said
    assert said.endswith("Random did not reach the 80.0 % that star ended with.")


def test_a_strategy_that_is_worse_saves_none_and_is_told_so():
    said = said_saving(compared([[0.3, 0.4, 0.5, 0.6]], [[0.3, 0.5, 0.7, 0.8]]))
    assert "star saved none: it needed about 75 labels more." in said
    assert "did not reach" not in said
    assert "So star saved none." in said_saving(compared([[0.3, 0.4, 0.5, 0.6]], [[0.3, 0.4, 0.5, 0.6]]))


def test_an_accuracy_that_the_first_round_has_takes_its_labels():
    found = saving(compared([[0.9, 0.9, 0.9, 0.9]], [[0.3, 0.4, 0.5, 0.6]]))
    assert found.ours == 60


def test_rounds_in_which_all_was_skipped_count_once():
    found = saving(compared([[0.3, 0.35, 0.7]], [[0.3, 0.35, 0.5]], labels=[60, 60, 160]))
    assert found.ours == pytest.approx(60 + 100 * 0.15 / 0.35)


def test_several_seeds_are_averaged_and_drawn_again(seed):
    rng = np.random.default_rng(seed)
    ours = np.linspace(0.3, 0.8, 4) + rng.normal(0, 0.01, (FEWEST_SEEDS, 4))
    theirs = np.linspace(0.3, 0.6, 4) + rng.normal(0, 0.01, (FEWEST_SEEDS, 4))
    found = saving(compared(ours.tolist(), theirs.tolist()))
    alone = saving(compared([ours.mean(0).tolist()], [theirs.mean(0).tolist()]))
    assert found[:4] == pytest.approx(alone[:4])
    low, high = found.interval
    assert low <= found.saved <= high
    assert saving(compared(ours.tolist(), theirs.tolist())).interval == found.interval
    assert saving(compared(ours[:-1].tolist(), theirs[:-1].tolist())).interval is None


@pytest.mark.parametrize(
    ("curves", "verdict"),
    [
        ([[0.3, 0.4, 0.5, 0.6]], "it still rises, so another round is likely to pay"),
        ([[0.5, 0.5, 0.5, 0.5]], "more labels of this kind are unlikely to add much"),
        ([[0.6, 0.5, 0.4, 0.3]], "more labels of this kind are unlikely to add much"),
        ([[0.5, 0.7, 0.4, 0.6]], "leaves open whether another round would pay"),
        ([[0.3, 0.4, 0.5, 0.6], [0.3, 0.41, 0.5, 0.63], [0.2, 0.3, 0.4, 0.5]], "it still rises"),
        ([[0.3, 0.4, 0.5, 0.6], [0.7, 0.6, 0.5, 0.4]], "leaves open"),
        ([[0.3, 0.4]], "Too few rounds yet"),
    ],
)
def test_whether_going_on_pays(curves, verdict):
    assert verdict in said_trend([a_run("star", seed, curve) for seed, curve in enumerate(curves)])


def test_a_trend_is_that_of_the_last_rounds_of_the_runs_that_have_come_furthest():
    long = a_run("star", 0, [0.0, 0.2, 0.5, 0.6, 0.7, 0.8], [10, 20, 30, 40, 50, 60])
    short = a_run("star", 1, [0.9, 0.1])
    assert trend([long, short]).value == pytest.approx(0.1)
    assert "Over the last 4 rounds accuracy rose by 10.0 points a round of 50 labels" in said_trend([long, short])


def test_a_result_of_several_seeds_is_a_mean():
    runs = [a_run("random", seed, [0.2, value]) for seed, value in enumerate((0.4, 0.6))]
    said = said_result("random", runs).replace("\N{NO-BREAK SPACE}", " ")
    assert said.startswith("With 110 labels, picked at random, the model answers 50.0 % of the test set correctly, on")
    assert said.endswith("on average over 2 seeds.")
