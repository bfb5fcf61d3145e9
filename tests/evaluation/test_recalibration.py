"""Calibrated confidence: few labels move it little, many bring it to the truth, and its interval tells them apart."""

import numpy as np
import pytest
from scipy import optimize

from star_jax.evaluation.calibration import expected_calibration_error
from star_jax.evaluation.recalibration import OFFSET_SD, SLOPE_SD, fit_recalibration


def answers(rng, count, slope=0.5, offset=-0.3):
    """Raw confidences of a model that is too sure, and which answers are right."""
    raw = rng.beta(4, 1, count)
    chance = 1 / (1 + np.exp(-(slope * np.log(raw / (1 - raw)) + offset)))
    return raw, rng.random(count) < chance, chance


def test_the_curve_is_the_minimum_of_what_is_written_down(rng):
    """Found again by a search without gradients, from elsewhere."""
    raw, correct, _ = answers(rng, 30)
    wins, losses = correct.sum(), (~correct).sum()
    targets = np.where(correct, (wins + 1) / (wins + 2), 1 / (losses + 2))

    def loss(at):
        chance = 1 / (1 + np.exp(-(at[0] * np.log(raw / (1 - raw)) + at[1])))
        nll = -np.sum(targets * np.log(chance) + (1 - targets) * np.log(1 - chance))
        return nll + (at[0] - 1) ** 2 / (2 * SLOPE_SD**2) + at[1] ** 2 / (2 * OFFSET_SD**2)

    tight = {"xatol": 1e-8, "fatol": 1e-12, "maxiter": 10_000}
    slow = optimize.minimize(loss, [0.2, 1.0], method="Nelder-Mead", options=tight).x
    found = fit_recalibration(raw, correct)
    assert (found.slope, found.offset) == pytest.approx(tuple(slow), abs=1e-3)
    assert found.judged == 30


def test_many_labels_bring_the_confidence_to_the_truth(rng):
    """5,000 labels: slope and offset have standard errors of about 0.05; other answers are then calibrated."""
    raw, correct, _ = answers(rng, 5000)
    found = fit_recalibration(raw, correct)
    assert found.slope == pytest.approx(0.5, abs=0.25)
    assert found.offset == pytest.approx(-0.3, abs=0.25)
    others, right, chance = answers(rng, 5000)
    assert np.abs(found(others) - chance).max() < 0.1
    assert expected_calibration_error(found(others), right) < expected_calibration_error(others, right) / 2


@pytest.mark.parametrize("right", [10, 0])
def test_ten_answers_alike_promise_no_certainty(right):
    """All right, or all wrong: certainty would need more than ten."""
    found = fit_recalibration(np.full(10, 0.999), np.arange(10) < right)
    sure = float(found([0.999])[0])
    assert 0.7 < sure < 0.98 if right else 0.02 < sure < 0.3


def test_a_few_labels_outweigh_a_confidence_that_is_far_too_high(rng):
    correct = rng.permutation(np.arange(20) < 10)
    assert 0.35 < float(fit_recalibration(np.full(20, 0.999), correct)([0.999])[0]) < 0.65


def test_the_order_of_answers_stays(rng):
    """Even where the surer answers of the labelled ones are the wrong ones."""
    raw = np.linspace(0.05, 0.95, 60)
    found = fit_recalibration(raw, raw < 0.5)
    assert found.slope == 0
    assert (np.diff(fit_recalibration(raw, rng.random(60) < raw)(raw)) >= 0).all()


def test_certain_and_impossible_answers_are_finite():
    found = fit_recalibration([0.0, 1.0, 1.0, 0.5] * 5, [False, True, True, True] * 5)
    assert np.isfinite(found([0.0, 1.0])).all()
    assert 0 < found([0.0])[0] < found([1.0])[0] < 1


def test_the_interval_is_of_the_accuracy_and_narrows(rng):
    """Of 200 sets of 40 labels, the interval holds the true accuracy in 95 %, less what the prior shifts it.

    With p = 0.95 the count has a standard deviation of 3.1; 170 is more than six of them below 190.
    """
    raw, _, chance = answers(rng, 300)
    held, widths = 0, {}
    for _ in range(200):
        labelled, correct, _ = answers(rng, 40)
        low, high = fit_recalibration(labelled, correct).accuracy_interval(raw, draws=300)
        held += low <= chance.mean() <= high
        widths[40] = high - low
    assert held >= 170
    for count in (400, 4000):
        labelled, correct, _ = answers(rng, count)
        low, high = fit_recalibration(labelled, correct).accuracy_interval(raw)
        widths[count] = high - low
    assert widths[40] > widths[400] > widths[4000]


def test_many_answers_are_summed_up_by_their_quantiles(rng):
    """A thousand of them; between neighbours the curve is as good as straight."""
    found = fit_recalibration(*answers(rng, 40)[:2])
    few = answers(rng, 1000)[0]
    many = np.tile(few, 5)
    assert found.accuracy_interval(many) == pytest.approx(found.accuracy_interval(few), abs=2e-3)


def test_no_answer_has_no_accuracy(rng):
    raw, correct, _ = answers(rng, 12)
    with pytest.raises(ValueError, match="no answer"):
        fit_recalibration(raw, correct).accuracy_interval([])
    for bad in (([], []), ([1.2], [True]), ([0.5, 0.5], [True])):
        with pytest.raises(ValueError, match=r"no calibration|probability|one length"):
            fit_recalibration(*bad)
