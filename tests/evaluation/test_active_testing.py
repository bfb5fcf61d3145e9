"""Active testing is unbiased, its interval holds, and it is LURE by its own formula."""

import numpy as np
import pytest
from scipy import stats

from star_jax.evaluation.active_testing import Draws, draw, estimate, level_weights, unbiased_terms

SIZE, COUNT, REPEATS = 300, 40, 400
CHANCE = 1e-6
"""That a right estimator fails a test with a fresh seed."""


def answers(rng, kind):
    """Confidences, and whether answers are right: as probable as that, or not at all as it says."""
    sure = rng.beta(2, 1, SIZE)
    if kind == "calibrated":
        return sure, rng.random(SIZE) < sure
    if kind == "overconfident":
        return sure**0.1, rng.random(SIZE) < sure
    if kind == "opposite":
        return sure, rng.random(SIZE) < 1 - sure
    return np.ones(SIZE), rng.random(SIZE) < 0.9  # sure of everything


@pytest.fixture(params=["calibrated", "overconfident", "opposite", "sure"])
def simulated(request, rng, seed):
    sure, right = answers(rng, request.param)
    found = []
    for number in range(REPEATS):
        draws = draw(sure, COUNT, seed=seed + number)
        found.append(estimate(sure, draws, right[draws.places]))
    return right.mean(), np.asarray(found)


def test_it_is_unbiased(simulated):
    truth, found = simulated
    values = found[:, 0]
    most = stats.norm.ppf(1 - CHANCE / 2) * values.std(ddof=1) / np.sqrt(REPEATS)
    assert abs(values.mean() - truth) <= most


def test_its_interval_holds_the_truth(simulated):
    """At least nine times in ten: a t interval of 40 skewed terms may fall short of its 95 %."""
    truth, found = simulated
    held = int(((found[:, 1] <= truth) & (truth <= found[:, 2])).sum())
    assert held >= stats.binom.ppf(CHANCE, REPEATS, 0.9)


def test_the_terms_add_up_to_lure(rng):
    """R = 1/M Σ v_m L_m with v_m = 1 + (N − M)/(N − m) (1/((N − m + 1) q_m) − 1): Kossen et al., equation 4."""
    values, q = rng.normal(size=COUNT), rng.uniform(0.001, 0.1, COUNT)
    reference = 0.0
    for m in range(1, COUNT + 1):
        weight = 1 + (SIZE - COUNT) / (SIZE - m) * (1 / ((SIZE - m + 1) * q[m - 1]) - 1)
        reference += weight * values[m - 1] / COUNT
    weights = level_weights(SIZE, COUNT)
    assert weights.sum() == pytest.approx(1)
    assert weights @ unbiased_terms(values, q, SIZE) == pytest.approx(reference)


def test_a_whole_test_set_gives_its_accuracy(rng):
    sure, right = answers(rng, "overconfident")
    draws = draw(sure, SIZE)
    assert sorted(draws.places) == list(range(SIZE))
    assert estimate(sure, draws, right[draws.places]) == pytest.approx([right.mean()] * 3)


def test_probabilities_are_those_of_draws_one_after_the_other(seed):
    """The first place, over many seeds, is as often each as its probability says; later draws are without it."""
    sure = np.asarray([0.5, 0.9, 1.0, 0.0])
    unsure = np.sqrt(sure * (1 - sure))
    expected = (0.5 + 0.5 * unsure / unsure.mean()) / 4
    firsts = np.zeros(4)
    for number in range(4000):
        draws = draw(sure, 2, seed + number)
        firsts[draws.places[0]] += 1
        first, second = draws.places
        assert draws.probabilities == pytest.approx([expected[first], expected[second] / (1 - expected[first])])
    assert stats.chisquare(firsts, 4000 * expected).pvalue > CHANCE


def test_a_larger_budget_goes_on_with_the_same_draws(rng):
    sure = rng.random(50)
    few, many = draw(sure, 5, 3), draw(sure, 20, 3)
    np.testing.assert_array_equal(few.places, many.places[:5])
    np.testing.assert_allclose(few.probabilities, many.probabilities[:5])


def test_a_good_confidence_narrows_the_interval(rng):
    """Beside one that says nothing, on the same answers."""
    sure = np.where(rng.random(SIZE) < 0.5, 0.98, 0.02)
    right = rng.random(SIZE) < sure
    flat = np.full(SIZE, 0.5)
    widths = []
    for confidence in (sure, flat):
        draws = draw(confidence, COUNT, 1)
        found = estimate(confidence, draws, right[draws.places])
        widths.append(found.high - found.low)
    assert widths[0] < widths[1]


def test_only_right_answers_of_a_sure_model_are_no_certainty():
    sure = np.ones(SIZE)
    found = estimate(sure, draw(sure, COUNT), np.ones(COUNT, bool))
    assert found.value == 1
    assert found.low < 1 - 1 / COUNT


def test_what_means_nothing_is_refused():
    with pytest.raises(ValueError, match="must be probabilities"):
        draw([0.5, 1.5], 1)
    with pytest.raises(ValueError, match="cannot label 3 of 2"):
        draw([0.5, 0.5], 3)
    with pytest.raises(ValueError, match="one for each of at least two"):
        estimate([0.5, 0.5], Draws(np.asarray([0]), np.asarray([0.5])), [True])
