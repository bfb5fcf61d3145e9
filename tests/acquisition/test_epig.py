"""EPIG against its definition in plain loops, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.epig import epig
from star_jax.acquisition.needs import Probabilities
from star_jax.acquisition.strategy import PoolFeatures, Query, get_strategy
from star_jax.testing import check_strategy


def gain_of(own, targets):
    """Mean over targets of KL(joint, product of the two), nats."""
    samples, total = len(own), 0.0
    for target in targets:
        for one in range(own.shape[1]):
            for other in range(own.shape[1]):
                joint = sum(own[k, one] * target[k, other] for k in range(samples)) / samples
                apart = own[:, one].mean() * target[:, other].mean()
                total += joint * np.log(joint / apart) if joint > 0 else 0
    return total / len(targets)


def test_gains_are_those_of_the_definition(rng):
    pool = rng.dirichlet(np.full(4, 0.5), (7, 3))
    pool[2, :, 1:], pool[2, :, 0] = 0, 1  # sure in all samples: nothing to learn
    counted = np.asarray([True] * 4 + [False])
    got = epig(*(jnp.asarray(one, jnp.float32) for one in (pool, pool[:5])), jnp.asarray(counted))
    np.testing.assert_allclose(got, [gain_of(own, pool[:4]) for own in pool], rtol=1e-3, atol=1e-6)
    assert float(got[2]) == 0


def test_samples_that_agree_leave_nothing_to_gain(rng):
    pool = np.repeat(rng.dirichlet(np.ones(3), (6, 1)), 4, axis=1).astype(np.float32)
    np.testing.assert_allclose(epig(jnp.asarray(pool), jnp.asarray(pool), jnp.ones(6, bool)), 0, atol=1e-6)


@pytest.mark.parametrize("size", [30, 130])
def test_the_strategy_takes_the_largest_gains_towards_what_is_unlabelled(rng, size):
    """Of a larger pool, towards a hundred of them."""
    strategy = get_strategy("epig")
    assert strategy.needs == (Probabilities(),)
    unlabelled = rng.random(size) < 0.6 if size == 30 else np.ones(size, bool)
    found = rng.dirichlet(np.ones(3), (size, 2)).astype(np.float32)
    found[~unlabelled] = np.nan
    pool = PoolFeatures(jnp.asarray(unlabelled), {Probabilities(): jnp.asarray(found)})
    picks = strategy.pick(jax.random.key(0), pool, Query(0, 9, 5))
    free = np.flatnonzero(unlabelled)
    gains = np.asarray(picks.scores)[free]
    if size == 30:
        np.testing.assert_allclose(gains, [gain_of(found[place], found[free]) for place in free], rtol=1e-3, atol=1e-6)
    else:
        # A mean of 100 of 130 terms is between the bounds of their means.
        assert (gains > 0).all()
    assert np.asarray(picks.indices).tolist() == free[np.argsort(-gains, kind="stable")[:5]].tolist()


def test_it_keeps_the_contract():
    check_strategy("epig")
    assert get_strategy("epig").sampled
