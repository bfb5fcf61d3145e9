"""Intervals of figures on a small test set, against formulas."""

import numpy as np
import pytest

from star_jax.evaluation.intervals import bootstrap, wilson


@pytest.mark.parametrize(("wins", "size"), [(0, 5), (5, 5), (17, 20), (120, 144)])
def test_the_interval_of_a_share_solves_wilsons_equation(wins, size):
    """Both ends p have (share − p)² = z² p (1 − p) / N."""
    found, z = wilson(np.arange(size) < wins), 1.959964
    assert found.value == wins / size
    for end in (found.low, found.high):
        assert (found.value - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / size, abs=1e-6)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_bootstrap_of_a_mean_is_that_of_the_normal_distribution(rng):
    """N = 400 and 2,000 draws: half the width is 1.96 standard errors, within a tenth or so."""
    values = rng.normal(size=400)
    found = bootstrap(lambda drawn: float(drawn.mean()), values)
    half = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    assert found == bootstrap(lambda drawn: float(drawn.mean()), values)


def test_columns_are_drawn_together(rng):
    values = rng.normal(size=50)
    found = bootstrap(lambda first, second: float(np.abs(first - second).max()), values, values)
    assert found == (0, 0, 0)


def test_nothing_has_no_interval():
    for call in (lambda: wilson([]), lambda: bootstrap(np.mean, []), lambda: bootstrap(np.mean, [1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match=r"nothing|one length"):
            call()
