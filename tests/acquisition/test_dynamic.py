"""Schedules by their values, normalisers against SciPy and loops, the released arithmetic against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from star_jax.acquisition.dynamic import (
    NORMALISERS,
    SCHEDULES,
    ReversedSchedule,
    blend,
    cosine_schedule,
    linear_schedule,
    released_schedule,
    subtract,
)
from star_jax.acquisition.needs import Measure
from star_jax.acquisition.scores import Blend, Difference, Scaled, Value
from star_jax.acquisition.strategies import SCALES
from star_jax.acquisition.strategy import PoolFeatures, Query


def pool(seed: int, size: int = 40, share: float = 0.6):
    rng = np.random.default_rng(seed)
    values = rng.gamma(2.0, 50.0, size).astype(np.float32)
    available = rng.random(size) < share
    available[:2] = True
    return values, available


def reference(name: str, values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    if name == "minmax":
        return (values - values.min()) / (values.max() - values.min())
    if name == "zscore":
        return stats.zscore(values)
    return (stats.rankdata(values) - 1) / (len(values) - 1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("queries", [1, 2, 9, 30])
def test_schedules_fall_within_the_unit_interval(name: str, queries: int) -> None:
    schedule = SCHEDULES[name](0.3)
    values = np.array([schedule(t, queries) for t in range(queries + 3)])
    assert ((values >= 0) & (values <= 1)).all()
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose([jax.jit(schedule, static_argnums=1)(t, queries) for t in range(3)], values[:3], 1e-6)


def test_schedules_have_the_values_they_say() -> None:
    np.testing.assert_allclose([released_schedule(t, 9) for t in range(9)], [1 - 0.1 * (t + 1) for t in range(9)], 1e-6)
    assert released_schedule(9, 30) == 0
    assert released_schedule(20, 30) == 0
    np.testing.assert_allclose([linear_schedule(t, 4) for t in range(4)], [1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose([cosine_schedule(t, 4) for t in (0, 2)], [1, 0.5], rtol=1e-6)
    assert SCHEDULES["constant"](0.3)(5, 9) == pytest.approx(0.3)


def test_reversed_schedule_runs_backwards() -> None:
    forwards = [float(released_schedule(t, 9)) for t in range(9)]
    backwards = [float(ReversedSchedule(released_schedule)(t, 9)) for t in range(9)]
    assert backwards == forwards[::-1]


@pytest.mark.parametrize("name", NORMALISERS)
@pytest.mark.parametrize("seed", range(3))
def test_normalisers_see_available_entries_only(name: str, seed: int) -> None:
    values, available = pool(seed)
    values[:6] = values[0]  # ties
    values[~available] = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30])[np.arange((~available).sum()) % 5]
    got = np.asarray(NORMALISERS[name](jnp.asarray(values), jnp.asarray(available)))
    np.testing.assert_allclose(got[available], reference(name, values[available]), rtol=1e-5, atol=1e-6)
    assert (got[~available] == 0).all()


@pytest.mark.parametrize("name", NORMALISERS)
def test_equal_values_are_zero(name: str) -> None:
    values = jnp.asarray([0.1, 7.0, 0.1, 0.1], jnp.float32)  # 0.1: the mean of three rounds
    available = jnp.asarray([True, False, True, True])
    np.testing.assert_array_equal(NORMALISERS[name](values, available), 0)
    np.testing.assert_array_equal(NORMALISERS[name](values, jnp.asarray([False, True, False, False])), 0)
    np.testing.assert_array_equal(NORMALISERS[name](values, jnp.zeros(4, bool)), 0)


@pytest.mark.parametrize("name", NORMALISERS)
@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(-50, 50), min_size=12, max_size=12), seed=st.integers(0, 1000))
def test_normalisers_keep_order_and_follow_permutations(name: str, values: list[int], seed: int) -> None:
    values = np.asarray(values, np.float32)
    rng = np.random.default_rng(seed)
    available = rng.random(12) < 0.7
    order = rng.permutation(12)
    normalise = NORMALISERS[name]
    got = np.asarray(normalise(jnp.asarray(values), jnp.asarray(available)))
    moved = np.asarray(normalise(jnp.asarray(values[order]), jnp.asarray(available[order])))
    np.testing.assert_allclose(moved, got[order], rtol=1e-5, atol=1e-6)
    for i in np.flatnonzero(available):
        for j in np.flatnonzero(available):
            assert np.sign(got[i] - got[j]) == np.sign(values[i] - values[j])


def test_blend_and_subtract() -> None:
    base, full = jnp.asarray([0.0, 1.0]), jnp.asarray([1.0, 0.5])
    np.testing.assert_allclose(blend(0.25, base, full), [0.75, 0.625])
    np.testing.assert_allclose(blend(1.0, base, full), base)
    np.testing.assert_allclose(blend(0.0, base, full), full)
    np.testing.assert_allclose(subtract(base, full), [1.0, -0.5])
    with pytest.raises(AssertionError):
        blend(0.5, base, full[:1])


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_released_arithmetic_scales_the_base_alone(seed: int, x64: bool) -> None:
    rng = np.random.default_rng(seed)
    dtype, tolerance = (np.float64, 1e-14) if x64 else (np.float32, 1e-6)
    base, full = rng.gamma(4.0, 200.0, (2, 48)).astype(dtype)
    available = rng.random(48) < 0.8
    scaled = np.zeros(48)
    scaled[available] = reference("minmax", base[available])
    measures = Measure("token_entropy", "base"), Measure("token_entropy")
    scores = tuple(Scaled(scale, Value(need)) for scale, need in zip(SCALES["released"], measures, strict=True))
    with jax.enable_x64(x64):
        arrays = dict(zip(measures, (jnp.asarray(base), jnp.asarray(full)), strict=True))
        features = PoolFeatures(jnp.asarray(available), arrays)
        for t in range(9):
            lam = 1 - 0.1 * (t + 1)
            got = np.asarray(Blend(released_schedule, *scores)(features, Query(t, 9, 1)))
            assert got.dtype == dtype
            want = lam * scaled + (1 - lam) * full.astype(np.float64)
            np.testing.assert_allclose(got[available], want[available], rtol=tolerance)
            assert (np.argsort(-got[available]) == np.argsort(-want[available])).all()
        got = np.asarray(Difference(*scores)(features, Query(0, 9, 1)))
        np.testing.assert_allclose(got[available], (full - scaled)[available], rtol=tolerance)
