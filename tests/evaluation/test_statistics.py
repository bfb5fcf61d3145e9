"""Paired comparison against SciPy and against the enumeration of all signs."""

import itertools

import numpy as np
import pytest
from scipy import stats

from star_jax.evaluation.statistics import mean_and_sd, paired_difference, slope, wilson_interval


@pytest.mark.parametrize("n", [2, 5, 10])
def test_equals_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.random((2, n))
    got = paired_difference(a, b)
    test = stats.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert got.n == n
    assert got.mean == pytest.approx(np.mean(a - b))
    assert got.sd == pytest.approx(np.std(a - b, ddof=1))
    assert got.t_p_value == pytest.approx(test.pvalue)
    assert got.interval == pytest.approx((interval.low, interval.high))
    assert got.wilcoxon_p_value == pytest.approx(stats.wilcoxon(a - b).pvalue)
    mirrored = paired_difference(b, a)
    assert mirrored.mean == -got.mean
    assert mirrored.t_p_value == got.t_p_value


def test_wilcoxon_equals_enumeration() -> None:
    difference = np.random.default_rng(3).normal(0.5, 1, 7)
    ranks = stats.rankdata(np.abs(difference))
    observed = ranks[difference > 0].sum()
    sums = [ranks @ signs for signs in itertools.product([1, 0], repeat=7)]
    tail = min(np.mean([s >= observed for s in sums]), np.mean([s <= observed for s in sums]))
    assert paired_difference(difference, np.zeros(7)).wilcoxon_p_value == pytest.approx(min(1, 2 * tail))


def test_one_pair_has_no_spread() -> None:
    got = paired_difference([0.75], [0.5])
    assert got == (0.25, None, 1, None, None, None)
    assert mean_and_sd([0.75]) == (0.75, None)


def test_differences_that_do_not_vary_have_no_t_test() -> None:
    same = paired_difference([0.3, 0.6, 0.9], [0.3, 0.6, 0.9])
    assert (same.mean, same.sd, same.t_p_value, same.wilcoxon_p_value) == (0, 0, None, None)
    shifted = paired_difference([0.3, 0.6, 0.9], [0.2, 0.5, 0.8])  # 0.1 but for rounding
    assert shifted.t_p_value is None
    assert shifted.mean == pytest.approx(0.1)


@pytest.mark.parametrize("n", [4, 60])
def test_ties_and_zeros_raise_no_warning(n: int) -> None:
    a = np.tile([0.5, 0.5, 0.75, 0.25], n // 4)
    got = paired_difference(a, np.full(n, 0.5))
    assert 0 <= got.wilcoxon_p_value <= 1
    assert 0 <= got.t_p_value <= 1


def test_mean_and_sd() -> None:
    mean, sd = mean_and_sd([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert sd == pytest.approx(np.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2))


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_sd([])
    with pytest.raises(ValueError, match="one length"):
        paired_difference([1.0, 2.0], [1.0])


def test_the_slope_of_one_curve_is_scipys_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for points in (3, 4, 9):
        x, y = np.sort(rng.choice(50, points, replace=False)), rng.random(points)
        found, expected = slope(x, [y]), stats.linregress(x, y)
        half = stats.t.ppf(0.975, points - 2) * expected.stderr
        assert found.value == pytest.approx(expected.slope)
        assert found.interval == pytest.approx((expected.slope - half, expected.slope + half))
    assert slope([1, 3], [[0.2, 0.4]]) == (pytest.approx(0.1), None)


def test_the_slope_of_several_curves_is_the_mean_of_theirs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, curves = np.arange(4), rng.random((6, 4))
    slopes = [stats.linregress(x, curve).slope for curve in curves]
    found = slope(x, curves)
    assert found.value == pytest.approx(np.mean(slopes))
    assert found.interval == pytest.approx(stats.ttest_1samp(slopes, 0).confidence_interval(0.95))


def test_an_interval_of_a_share_is_scipys_and_stays_within_0_and_1() -> None:
    for right, n in ((0, 1), (1, 1), (0, 50), (30, 50), (50, 50), (719, 720)):
        found = wilson_interval(right / n, n)
        expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert found == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert 0 <= found[0] <= right / n <= found[1] <= 1


def test_a_slope_of_one_place_and_a_share_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="two points"):
        slope([1, 1], [[0.1, 0.2]])
    with pytest.raises(ValueError, match="0 cases"):
        wilson_interval(0.5, 0)
