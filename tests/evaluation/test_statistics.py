"""Paired comparison against SciPy and against the enumeration of all signs."""

import itertools

import numpy as np
import pytest
from scipy import stats

from star_jax.evaluation.statistics import mean_and_sd, paired_difference


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
