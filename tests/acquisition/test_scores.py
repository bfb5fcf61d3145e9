"""The pieces of a score against loops in numpy, and compositions of them as values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.dynamic import (
    ConstantSchedule,
    ReversedSchedule,
    linear_schedule,
    minmax,
    rank,
    released_schedule,
    zscore,
)
from star_jax.acquisition.needs import Embedding, Measure
from star_jax.acquisition.scores import Blend, ByScore, Difference, Power, Scaled, TopK, Value
from star_jax.acquisition.strategy import PoolFeatures, Query
from star_jax.errors import ConfigError

SIZE, COUNT = 30, 6
BASE, FULL, SAMPLED = Measure("margin", "base"), Measure("margin"), Measure("bald", samples=True)
QUERY = Query(2, 8, COUNT)


@pytest.fixture
def pool(rng):
    """Distinct values, of which two thirds are unlabelled; the others are no numbers."""
    unlabelled = rng.permutation(np.arange(SIZE) % 3 > 0)
    features = {}
    for need in (BASE, FULL, SAMPLED):
        values = (rng.permutation(SIZE) + rng.random(SIZE) / 2).astype(np.float32)
        features[need] = jnp.asarray(np.where(unlabelled, values, np.nan))
    return PoolFeatures(jnp.asarray(unlabelled), features)


def values(pool, need):
    return np.asarray(pool[need], np.float64)[np.asarray(pool.unlabelled)]


def unlabelled(pool, scores):
    return np.asarray(scores)[np.asarray(pool.unlabelled)]


def ranks(numbers):
    return np.asarray([sum(other < one for other in numbers) / (len(numbers) - 1) for one in numbers])


def test_a_value_is_the_measure_itself(pool):
    assert Value(FULL)(pool, QUERY) is pool[FULL]
    assert Value(FULL).needs == (FULL,)


def test_a_scale_is_set_by_what_is_unlabelled(pool):
    score = Scaled(rank, Value(FULL))
    np.testing.assert_allclose(unlabelled(pool, score(pool, QUERY)), ranks(values(pool, FULL)), rtol=1e-6)
    assert score.needs == (FULL,)


def test_blends_of_blends_are_what_they_say(pool):
    """λ = 6/8 of a difference of ranks, the rest of a sampled measure on z-scores."""
    difference = Difference(Scaled(rank, Value(BASE)), Scaled(rank, Value(FULL)))
    score = Blend(linear_schedule, difference, Scaled(zscore, Value(SAMPLED)))
    assert score.needs == (BASE, FULL, SAMPLED)
    sampled = values(pool, SAMPLED)
    want = 0.75 * (ranks(values(pool, FULL)) - ranks(values(pool, BASE)))
    want += 0.25 * (sampled - sampled.mean()) / sampled.std()
    np.testing.assert_allclose(unlabelled(pool, score(pool, QUERY)), want, rtol=1e-5, atol=1e-6)


def test_a_scale_can_be_put_over_a_blend(pool):
    blend = Blend(ConstantSchedule(0.25), Value(BASE), Value(FULL))
    raw = 0.25 * values(pool, BASE) + 0.75 * values(pool, FULL)
    want = (raw - raw.min()) / (raw.max() - raw.min())
    np.testing.assert_allclose(unlabelled(pool, Scaled(minmax, blend)(pool, QUERY)), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", [0, 3, 7])
def test_the_weight_goes_by_the_query(pool, index):
    query = Query(jnp.asarray(index), 8, COUNT)
    for schedule, weight in (
        (released_schedule, 0.9 - 0.1 * index),
        (linear_schedule, 1 - index / 8),
        (ReversedSchedule(linear_schedule), 1 - (7 - index) / 8),
    ):
        got = unlabelled(pool, Blend(schedule, Value(BASE), Value(FULL))(pool, query))
        want = weight * values(pool, BASE) + (1 - weight) * values(pool, FULL)
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_batch_is_the_highest_scores_highest_first(pool):
    picks, scores = ByScore(Value(FULL), TopK())(jax.random.key(0), pool, QUERY)
    places = np.flatnonzero(pool.unlabelled)
    want = sorted(places, key=lambda place: -float(pool[FULL][place]))[:COUNT]
    assert picks.tolist() == want
    np.testing.assert_array_equal(scores, np.where(pool.unlabelled, pool[FULL], 0))


def test_a_drawn_batch_is_unlabelled_distinct_and_of_the_key(pool):
    drawn = ByScore(Value(FULL), Power(1.0))
    batches = [drawn(jax.random.key(number), pool, QUERY).indices.tolist() for number in range(4)]
    assert len({tuple(batch) for batch in batches}) == 4
    for batch in batches:
        assert len(set(batch)) == COUNT
        assert np.asarray(pool.unlabelled)[batch].all()
    # The colder it is, the closer to the highest scores.
    cold = ByScore(Value(FULL), Power(1e4))(jax.random.key(0), pool, QUERY).indices.tolist()
    assert cold == ByScore(Value(FULL), TopK())(jax.random.key(0), pool, QUERY).indices.tolist()


def test_an_example_without_a_number_sets_no_scale_and_is_named(pool):
    bad = np.flatnonzero(pool.unlabelled)[[2, 5]]
    spoilt = PoolFeatures(pool.unlabelled, dict(pool.features) | {BASE: pool[BASE].at[bad].set(jnp.inf)})
    fewer = PoolFeatures(pool.unlabelled.at[bad].set(False), pool.features)
    whole = ByScore(Difference(Scaled(minmax, Value(BASE)), Scaled(minmax, Value(FULL))), TopK())
    scores = np.asarray(whole(jax.random.key(0), spoilt, QUERY).scores)
    assert np.flatnonzero(np.isnan(scores)).tolist() == bad.tolist()
    others = np.setdiff1d(np.arange(SIZE), bad)
    want = np.asarray(whole(jax.random.key(0), fewer, QUERY).scores)
    np.testing.assert_array_equal(scores[others], want[others])


def test_a_score_reads_only_what_is_there(pool):
    with pytest.raises(ConfigError, match=r"reads Measure\(name='token_entropy', .* is not among its needs; add it"):
        Value(Measure("token_entropy"))(pool, QUERY)
    with pytest.raises(ConfigError, match=r"reads Embedding\(model='base', .* is not among its needs"):
        pool[Embedding()]


def compositions():
    """Made anew by every call, no two of a list alike."""
    base, full = Value(Measure("margin", "base")), Value(Measure("margin"))
    return [
        ByScore(Blend(released_schedule, Scaled(rank, base), Scaled(rank, full)), TopK()),
        ByScore(Blend(released_schedule, Scaled(minmax, base), Scaled(rank, full)), TopK()),
        ByScore(Blend(linear_schedule, Scaled(rank, base), Scaled(rank, full)), TopK()),
        ByScore(Blend(ConstantSchedule(0.5), Scaled(rank, base), Scaled(rank, full)), TopK()),
        ByScore(Blend(ConstantSchedule(0.25), Scaled(rank, base), Scaled(rank, full)), TopK()),
        ByScore(Blend(ReversedSchedule(released_schedule), Scaled(rank, base), Scaled(rank, full)), TopK()),
        ByScore(Difference(Scaled(rank, base), Scaled(rank, full)), TopK()),
        ByScore(Difference(Scaled(rank, full), Scaled(rank, base)), TopK()),
        ByScore(full, TopK()),
        ByScore(full, Power(1.0)),
        ByScore(full, Power(2.0)),
        ByScore(base, TopK()),
        ByScore(Value(Measure("margin", samples=True)), TopK()),
    ]


def test_compositions_are_equal_by_value_and_hash_alike():
    ours, theirs = compositions(), compositions()
    assert ours == theirs
    assert [hash(one) for one in ours] == [hash(one) for one in theirs]
    assert len(set(ours)) == len(ours)
    assert set(ours) == set(theirs)


def test_a_composition_made_again_is_no_other_program(pool):
    calls = []

    def picked(function, key, unlabelled, features, index):
        calls.append(function)
        needs = function.score.needs
        return function(key, PoolFeatures(unlabelled, dict(zip(needs, features, strict=True))), Query(index, 8, COUNT))

    jitted = jax.jit(picked, static_argnums=0)
    for _ in range(2):
        for number, function in enumerate(compositions()[:3]):
            features = tuple(pool[BASE if need.model == "base" else FULL] for need in function.score.needs)
            jitted(function, jax.random.key(0), pool.unlabelled, features, number)
    assert len(calls) == 3
