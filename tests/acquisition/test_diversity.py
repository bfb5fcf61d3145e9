"""Greedy batches on vectors, against loops over pairs of examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition import diversity
from star_jax.acquisition.diversity import (
    Points,
    facility_location,
    k_center,
    k_means_plus_plus,
    log_det,
)

SIZE, WIDTH = 60, 6
GREEDY = [k_center, facility_location, log_det]
EVERY = [*GREEDY, k_means_plus_plus]


def points_of(rng, size=SIZE, taken=9, out=5):
    """A pool with some examples taken, and some that are neither taken nor free."""
    vectors = rng.normal(size=(size, WIDTH)).astype(np.float32)
    order = rng.permutation(size)
    mask, free = np.zeros(size, bool), np.ones(size, bool)
    mask[order[:taken]] = True
    free[order[: taken + out]] = False
    return Points(jnp.asarray(vectors), jnp.asarray(mask), jnp.asarray(free))


def key(number=0):
    return jax.random.key(number)


def best(gains, free, picks):
    """The greatest gain among what is free, the earlier one of equals."""
    left = [place for place in np.flatnonzero(free).tolist() if place not in picks]
    return max(left, key=lambda place: (gains(place), -place))


def slow_k_center(points, count):
    vectors, taken, free = (np.asarray(leaf, np.float64) for leaf in points)
    picks, scores, middle = [], [], vectors.mean(axis=0)
    for _ in range(count):
        centres = [*np.flatnonzero(taken), *picks]

        def gap(place, centres=tuple(centres)):
            if not centres:
                return -np.linalg.norm(vectors[place] - middle)
            return min(np.linalg.norm(vectors[place] - vectors[centre]) for centre in centres)

        picks.append(best(gap, free, picks))
        scores.append(max(gap(picks[-1]), 0))
    return picks, scores


def slow_log_det(points, count):
    vectors, taken, free = (np.asarray(leaf, np.float64) for leaf in points)
    vectors = vectors / np.sqrt(np.square(vectors).sum(axis=1).mean())
    chosen, picks, scores = [vectors[place] for place in np.flatnonzero(taken)], [], []

    def value(rows):
        return np.linalg.slogdet(np.eye(WIDTH) + sum((np.outer(row, row) for row in rows), np.zeros((WIDTH, WIDTH))))[1]

    for _ in range(count):
        picks.append(best(lambda place: value([*chosen, vectors[place]]), free, picks))
        scores.append(value([*chosen, vectors[picks[-1]]]) - value(chosen))
        chosen.append(vectors[picks[-1]])
    return picks, scores


def slow_facility_location(points, count):
    vectors, taken, free = (np.asarray(leaf, np.float64) for leaf in points)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen, picks, scores = np.flatnonzero(taken).tolist(), [], []

    def value(places):
        return np.mean([max([(1 + one @ unit[place]) / 2 for place in places], default=0) for one in unit])

    for _ in range(count):
        picks.append(best(lambda place: value([*chosen, place]), free, picks))
        scores.append(value([*chosen, picks[-1]]) - value(chosen))
        chosen.append(picks[-1])
    return picks, scores


SLOW = {k_center: slow_k_center, log_det: slow_log_det, facility_location: slow_facility_location}


@pytest.mark.parametrize("taken", [0, 9])
@pytest.mark.parametrize("function", GREEDY, ids=lambda function: function.__name__)
def test_picks_and_scores_are_those_of_a_slow_loop(rng, function, taken):
    points = points_of(rng, taken=taken)
    picks, scores = function(key(), points, 8)
    want, want_scores = SLOW[function](points, 8)
    assert picks.tolist() == want
    assert picks.dtype == jnp.int32
    np.testing.assert_allclose(np.asarray(scores)[want], want_scores, rtol=2e-3, atol=1e-5)
    assert (np.asarray(scores)[~np.asarray(points.free)] == 0).all()


@pytest.mark.parametrize("function", EVERY, ids=lambda function: function.__name__)
def test_everything_that_is_free_can_be_picked_and_nothing_else(rng, function):
    points = points_of(rng, 20)
    picks, scores = function(key(), points, int(points.free.sum()))
    assert sorted(picks.tolist()) == np.flatnonzero(points.free).tolist()
    assert np.isfinite(np.asarray(scores)).all()


@pytest.mark.parametrize("function", EVERY, ids=lambda function: function.__name__)
def test_equal_vectors_are_each_picked_once_the_earlier_first(function):
    free = jnp.asarray([True, False, True, True, False, True])
    for taken in (jnp.zeros(6, bool), ~free):
        picks, scores = function(key(), Points(jnp.ones((6, 3)), taken, free), 4)
        assert sorted(picks.tolist()) == [0, 2, 3, 5]
        assert np.isfinite(np.asarray(scores)).all()
        if function in GREEDY:
            assert picks.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize("function", GREEDY, ids=lambda function: function.__name__)
def test_more_picks_begin_with_the_same(rng, function):
    points = points_of(rng)
    assert function(key(), points, 9).indices[:4].tolist() == function(key(), points, 4).indices.tolist()


def test_k_means_plus_plus_draws_in_proportion_to_squared_distances(rng):
    """The second pick over many keys; each share is a binomial one, within 5 of its standard deviations."""
    points, draws = points_of(rng, 7, taken=0, out=1), 2000
    picks = jax.jit(jax.vmap(lambda one: k_means_plus_plus(one, points, 2).indices))(jax.random.split(key(), draws))
    vectors, free = np.asarray(points.vectors, np.float64), np.asarray(points.free)
    first = best(lambda place: np.linalg.norm(vectors[place]), free, [])
    assert set(picks[:, 0].tolist()) == {first}
    weights = np.square(vectors - vectors[first]).sum(axis=1) * free
    shares = weights / weights.sum()
    found = np.bincount(np.asarray(picks[:, 1]), minlength=7) / draws
    assert (np.abs(found - shares) <= 5 * np.sqrt(shares * (1 - shares) / draws)).all()


def test_a_large_pool_is_covered_by_samples_nearly_as_well(rng, monkeypatch):
    """Over all examples as clients, stochastic greedy is on average within 1 − 1/e − ε of the optimum (its theorem 1);
    the greedy batch is no better than the optimum, so that half of it is a bound that even one run keeps."""
    monkeypatch.setattr(diversity, "EXACT", 0)
    jax.clear_caches()
    points = points_of(rng, taken=0)
    sampled = facility_location(key(), points, 8)
    monkeypatch.undo()
    jax.clear_caches()
    exact = facility_location(key(), points, 8)

    def value(picks):
        unit = np.asarray(points.vectors) / np.linalg.norm(points.vectors, axis=1, keepdims=True)
        return ((1 + unit @ unit[np.asarray(picks.indices)].T) / 2).max(axis=1).mean()

    assert 0.5 * value(exact) <= value(sampled)
    assert len(set(sampled.indices.tolist())) == 8
    assert np.asarray(points.free)[sampled.indices].all()
    np.testing.assert_allclose(np.asarray(sampled.scores)[sampled.indices].sum(), value(sampled), rtol=1e-4)


def test_samples_are_taken_where_the_pool_is_large():
    """Neither all pairs nor all candidates are ever in memory."""
    size, width = 20_000, 4
    points = Points(jnp.ones((size, width)), jnp.zeros(size, bool), jnp.ones(size, bool))
    for count in (1, 500):
        memory = facility_location.lower(key(), points, count).compile().memory_analysis().temp_size_in_bytes
        assert memory < 4 * size * size / 8
