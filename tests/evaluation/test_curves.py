"""Areas against a loop, scikit-learn and curves whose area is known."""

import numpy as np
import pytest
from sklearn.metrics import auc

from star_jax.evaluation.curves import aubc, aubc_of_rounds, labels_needed, ripl


@pytest.mark.parametrize("seed", range(4))
def test_area_equals_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.cumsum(rng.integers(1, 100, 8))
    accuracy = rng.random(8)
    area = sum((labels[i + 1] - labels[i]) * (accuracy[i] + accuracy[i + 1]) / 2 for i in range(7))
    assert aubc(labels, accuracy) == pytest.approx(area / (labels[-1] - labels[0]))
    assert aubc(labels, accuracy) == pytest.approx(auc(labels, accuracy) / np.ptp(labels))
    assert accuracy.min() <= aubc(labels, accuracy) <= accuracy.max()


def test_area_of_known_curves() -> None:
    assert aubc([500], [0.4]) == 0.4
    assert aubc([500, 1000, 5000], [0.7, 0.7, 0.7]) == pytest.approx(0.7)
    assert aubc([0, 10], [0.0, 1.0]) == 0.5
    assert aubc([0, 10, 40], [0.0, 1.0, 1.0]) == pytest.approx((5 + 30) / 40)


def test_area_refuses_what_is_no_curve() -> None:
    for labels, accuracy in (([], []), ([1, 2], [0.5])):
        with pytest.raises(ValueError, match="as many accuracies as labels"):
            aubc(labels, accuracy)
    with pytest.raises(ValueError, match="must increase"):
        aubc([10, 10], [0.1, 0.2])


def test_improvement_over_passive_learning() -> None:
    assert ripl(0.8, 0.6) == pytest.approx(0.5)
    assert ripl(0.6, 0.6) == 0
    assert ripl(1.0, 0.3) == 1
    assert ripl(0.4, 0.6) == pytest.approx(-0.5)
    assert ripl(1.0, 1.0) is None


def test_a_round_without_a_new_label_does_not_count_twice():
    rows = [{"labelled": 5, "accuracy": 0.2}, {"labelled": 5, "accuracy": 0.4}, {"labelled": 9, "accuracy": 0.6}]
    assert aubc_of_rounds(rows) == pytest.approx(0.5)
    assert aubc_of_rounds(rows[:2]) == pytest.approx(0.4)


def test_labels_needed_are_those_of_the_first_crossing(seed) -> None:
    """Against a walk along the curve in small steps."""
    rng = np.random.default_rng(seed)
    labels, accuracy = np.asarray([10, 30, 60, 100]), rng.random(4)
    fine = np.linspace(10, 100, 90_001)
    heights = np.interp(fine, labels, accuracy)
    for target in rng.random(20):
        reached = np.flatnonzero(heights >= target)
        found = labels_needed(labels, accuracy, target)
        if reached.size:
            assert found == pytest.approx(fine[reached[0]], abs=0.0011)
        else:
            assert found is None
    assert labels_needed(labels, accuracy, accuracy[0]) == 10
    assert labels_needed(labels, [0.1, 0.1, 0.5, 0.2], 0.5) == 60
