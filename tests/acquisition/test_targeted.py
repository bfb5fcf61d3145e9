"""RDS+ and SIFT against plain loops in float64, written from their equations."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.diversity import Points
from star_jax.acquisition.needs import Targets
from star_jax.acquisition.strategy import PoolFeatures, Query, get_strategy
from star_jax.acquisition.targeted import NOISE, round_robin, sift
from star_jax.testing import check_strategy

SIZE, TARGETS, WIDTH, COUNT = 30, 4, 6, 9


@pytest.fixture
def vectors(rng):
    return rng.normal(size=(SIZE, WIDTH)).astype(np.float32), rng.normal(size=(TARGETS, WIDTH)).astype(np.float32)


@pytest.fixture
def taken(rng):
    mask = np.zeros(SIZE, bool)
    mask[rng.permutation(SIZE)[:5]] = True
    return mask


def cosine(one, other):
    one, other = (np.asarray(vector, np.float64) for vector in (one, other))
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.parametrize("first", [0, 3])
def test_targets_take_the_most_similar_in_turn(vectors, taken, first):
    pool, targets = vectors
    found = round_robin(jnp.asarray(pool), jnp.asarray(targets), jnp.asarray(~taken), jnp.asarray(first), COUNT)
    left, want = set(np.flatnonzero(~taken).tolist()), []
    for turn in range(COUNT):
        target = targets[(first + turn) % TARGETS]
        best = max(left, key=lambda place, target=target: cosine(pool[place], target))
        want.append(best)
        left.remove(best)
    assert np.asarray(found.indices).tolist() == want
    nearest = [max(cosine(one, target) for target in targets) for one in pool]
    np.testing.assert_allclose(found.scores, np.where(taken, 0, nearest), atol=1e-5)


def unknown(pool, known, point):
    """σ² of a point when the examples of those numbers are known."""
    rows = pool[known]
    kernel = rows @ rows.T + NOISE * np.eye(len(known))
    across = rows @ point
    return point @ point - across @ np.linalg.solve(kernel, across)


def test_sift_takes_what_leaves_the_least_unknown(vectors, taken):
    pool, targets = vectors
    found = sift(Points(jnp.asarray(pool), jnp.asarray(taken), jnp.asarray(~taken)), jnp.asarray(targets), COUNT)
    middle = pool.mean(axis=0).astype(np.float64)
    units, aims = (part - middle for part in vectors)
    units, aims = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (units, aims))
    known = np.flatnonzero(taken).tolist()
    for place in np.asarray(found.indices).tolist():
        rest = [one for one in range(SIZE) if one not in known]
        left = {one: sum(unknown(units, [*known, one], aim) for aim in aims) for one in rest}
        # A tie but for rounding may go either way.
        assert left[place] <= min(left.values()) + 1e-5
        known.append(place)
    assert len(set(known)) == 5 + COUNT


def test_without_labels_sift_begins_with_what_says_most(vectors):
    """One target, which is in the pool: itself."""
    pool, _ = vectors
    nothing = jnp.zeros(SIZE, bool)
    found = sift(Points(jnp.asarray(pool), nothing, ~nothing), jnp.asarray(pool[7:8]), 2)
    assert int(found.indices[0]) == 7


@pytest.mark.parametrize("name", ["rds_plus", "sift"])
def test_they_keep_the_contract(name):
    check_strategy(name)
    assert get_strategy(name).targeted


def test_the_turns_go_on_from_query_to_query(vectors):
    pool, targets = vectors
    strategy = get_strategy("rds_plus")
    vector, aims = strategy.needs
    assert aims == Targets(vector)
    free = jnp.ones(SIZE, bool)
    features = PoolFeatures(free, {vector: jnp.asarray(pool), aims: jnp.asarray(targets)})
    # Two picks a query: the second query begins with the third target.
    got = strategy.pick(None, features, Query(jnp.asarray(1), 9, 2)).indices
    want = round_robin(jnp.asarray(pool), jnp.asarray(targets), free, jnp.asarray(2), 2).indices
    np.testing.assert_array_equal(got, want)
