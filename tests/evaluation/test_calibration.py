"""Calibration against loops and scikit-learn, on fresh random confidences."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score

from star_jax.evaluation.calibration import auroc, brier, expected_calibration_error, reliability_bins

SCHEMES = ("equal_width", "equal_mass")


def draw(seed: int, size: int = 300):
    rng = np.random.default_rng(seed)
    confidence = rng.beta(3, 1, size)
    return confidence, rng.random(size) < confidence**2


def loop_ece(confidence, correct, bins):
    total = 0.0
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (m == 0 and c == 0)]
        if inside:
            gap = np.mean([correct[i] for i in inside]) - np.mean([confidence[i] for i in inside])
            total += len(inside) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_brier_equals_scikit_learn(seed: int) -> None:
    confidence, correct = draw(seed)
    assert brier(confidence, correct) == pytest.approx(brier_score_loss(correct, confidence))


@pytest.mark.parametrize("bins", [1, 2, 15])
@pytest.mark.parametrize("seed", range(3))
def test_equal_width_equals_a_loop(seed: int, bins: int) -> None:
    confidence, correct = draw(seed)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(loop_ece(confidence, correct, bins))


@pytest.mark.parametrize(("scheme", "theirs"), [("equal_width", "uniform"), ("equal_mass", "quantile")])
def test_bins_equal_scikit_learn(scheme: str, theirs: str) -> None:
    confidence, correct = draw(5)
    table = reliability_bins(confidence, correct, 10, scheme)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10, strategy=theirs)
    filled = table.counts > 0
    np.testing.assert_allclose(table.accuracy[filled], accuracy)
    np.testing.assert_allclose(table.confidence[filled], mean)
    assert np.isnan(table.accuracy[~filled]).all()
    assert table.counts.sum() == len(confidence)
    assert table.edges.shape == (11,)


def test_equal_mass_bins_are_equal_for_distinct_confidences() -> None:
    confidence, correct = draw(6, 301)
    counts = reliability_bins(confidence, correct, 15, "equal_mass").counts
    assert counts.max() - counts.min() <= 1
    order = np.argsort(confidence)
    parts = np.split(order, np.cumsum(counts)[:-1])
    want = sum(len(p) * abs(correct[p].mean() - confidence[p].mean()) for p in parts) / 301
    assert expected_calibration_error(confidence, correct, 15, "equal_mass") == pytest.approx(want)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_does_not_matter_even_with_ties(scheme: str) -> None:
    rng = np.random.default_rng(7)
    confidence = rng.integers(0, 4, 100) / 3
    correct = rng.random(100) < 0.5
    order = rng.permutation(100)
    got = expected_calibration_error(confidence[order], correct[order], 15, scheme)
    assert got == pytest.approx(expected_calibration_error(confidence, correct, 15, scheme))


def test_ends_of_the_unit_interval_have_a_bin() -> None:
    table = reliability_bins([0.0, 1.0, 1.0], [False, True, False], 15)
    assert table.counts[0] == 1
    assert table.counts[-1] == 2
    assert table.accuracy[-1] == 0.5
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    for scheme in SCHEMES:
        assert expected_calibration_error([1.0, 1.0, 1.0, 1.0], [True, False, False, False], 15, scheme) == 0.75


@pytest.mark.parametrize("seed", range(3))
def test_auroc_equals_scikit_learn_and_counting_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    error = rng.random(60) < 0.3
    uncertainty = rng.integers(0, 12, 60) + error  # ties
    wins = [
        (uncertainty[i] > uncertainty[j]) + (uncertainty[i] == uncertainty[j]) / 2
        for i in np.flatnonzero(error)
        for j in np.flatnonzero(~error)
    ]
    assert auroc(uncertainty, error) == pytest.approx(np.mean(wins))
    assert auroc(uncertainty, error) == pytest.approx(roc_auc_score(error, uncertainty))


def test_auroc_needs_both_kinds() -> None:
    assert auroc([1.0, 2.0], [True, True]) is None
    assert auroc([1.0, 2.0], [False, False]) is None
    assert auroc([], []) is None
    assert auroc([1.0, 2.0], [False, True]) == 1.0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="no example"):
        brier([], [])
    with pytest.raises(ValueError, match="one length"):
        brier([0.5, 0.5], [True])
    for value in (1.2, -0.1, np.nan):
        with pytest.raises(ValueError, match="not a probability"):
            expected_calibration_error([value], [True])
    with pytest.raises(ValueError, match="bins is 0"):
        reliability_bins([0.5], [True], 0)
    with pytest.raises(ValueError, match="scheme is odd"):
        reliability_bins([0.5], [True], 5, "odd")
    with pytest.raises(ValueError, match="not finite"):
        auroc([np.nan, 1.0], [True, False])
