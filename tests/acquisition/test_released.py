"""The released code's scale: what it does to the two models' measures, and which strategies have it."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.dynamic import minmax
from star_jax.acquisition.released import RELEASED, check_has_released_form, unscaled
from star_jax.acquisition.strategies import SCALES
from star_jax.acquisition.strategy import get_strategy
from star_jax.config import AcquisitionConfig
from star_jax.errors import ConfigError

SETTINGS = AcquisitionConfig(normaliser="released")


def test_the_base_is_scaled_and_the_full_model_is_not():
    assert SCALES[RELEASED] == (minmax, unscaled)


def test_what_is_unscaled_stays_as_it_is_to_the_bit(rng):
    values = rng.gamma(4.0, 200.0, 40).astype(np.float32)
    got = unscaled(jnp.asarray(values), jnp.asarray(rng.random(40) < 0.5))
    np.testing.assert_array_equal(got, values)
    assert got.dtype == values.dtype


@pytest.mark.parametrize("name", ["entropy_subtract", "pe_subtract", "entropy_dynamic", "pe_dynamic"])
def test_strategies_of_the_released_code_have_the_scale(name):
    score = get_strategy(name, SETTINGS).pick.score
    assert (score.base.normaliser, score.full.normaliser) == (minmax, unscaled)


@pytest.mark.parametrize("name", ["random", "entropy", "pe", "base_only", "bald", "least_confidence", "margin"])
def test_strategies_that_blend_nothing_are_the_same_on_any_scale(name):
    assert get_strategy(name, SETTINGS) == get_strategy(name)


@pytest.mark.parametrize("name", ["star", "star_constant", "star_reversed"])
def test_star_is_refused_on_it(name):
    """Its ranks are not the released code's, and raw sums would drown them."""
    said = (
        rf"^strategy {name} blends on a rank scale, which the released code does not have; leave out "
        r"acquisition\.normaliser released .*, or choose entropy_dynamic or pe_dynamic$"
    )
    with pytest.raises(ConfigError, match=said):
        get_strategy(name, SETTINGS)


@pytest.mark.parametrize("asked", [None, "minmax", "zscore", "rank"])
def test_any_other_scale_is_let_through(asked):
    check_has_released_form("star", "rank", asked)
