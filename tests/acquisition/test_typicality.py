"""TypiClust against a loop that goes round the clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition import typicality as module
from star_jax.acquisition.clustering import k_means, one_stratum
from star_jax.acquisition.diversity import Points
from star_jax.acquisition.typicality import SMALL, most_typical, typicality, typiclust


def slow_typicality(vectors, members):
    """Of each member among the members."""
    neighbours = min(20, len(members) // 2)
    found = {}
    for one in members:
        others = sorted(np.linalg.norm(vectors[one] - vectors[other]) for other in members if other != one)
        found[one] = 1 / (np.mean(others[: max(neighbours, 1)]) + 1e-5) if others else 0.0
    return found


def slow_picks(vectors, clusters, taken, free, count):
    """Round after round over the clusters with few labels first, then the larger ones."""
    names = sorted(set(clusters.tolist()))
    size = {name: int((clusters == name).sum()) for name in names}
    known = {name: int(taken[clusters == name].sum()) for name in names}
    order = sorted(names, key=lambda name: (known[name], -size[name], name))
    left = {}
    for name in names:
        members = np.flatnonzero((clusters == name) & free).tolist()
        scores = slow_typicality(vectors, members)
        left[name] = sorted(members, key=lambda place: (-scores[place], place))
    picks = []
    for among in ([name for name in order if size[name] > SMALL], [name for name in order if size[name] <= SMALL]):
        while any(left[name] for name in among) and len(picks) < count:
            for name in among:
                if left[name] and len(picks) < count:
                    picks.append(left[name].pop(0))
    return picks


def pool(rng, size):
    vectors = rng.normal(size=(size, 4)).astype(np.float32)
    clusters = rng.choice([0, 1, 2, 3, 7], size=size, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    taken = rng.random(size) < 0.1
    return vectors, clusters, taken, ~taken & (rng.random(size) < 0.95)


@pytest.mark.parametrize("block", [8, 128])
def test_typicality_is_that_of_a_slow_loop(rng, monkeypatch, block):
    """With groups that span several blocks, and blocks that span several groups."""
    monkeypatch.setattr(module, "_BLOCK", block)
    jax.clear_caches()
    vectors, clusters, _, free = pool(rng, 90)
    got = np.asarray(typicality(jnp.asarray(vectors), jnp.asarray(np.where(free, clusters, 90))))
    for name in set(clusters.tolist()):
        want = slow_typicality(vectors.astype(np.float64), np.flatnonzero((clusters == name) & free).tolist())
        np.testing.assert_allclose(got[list(want)], list(want.values()), rtol=1e-4)
    assert (got[~free] == 0).all()
    jax.clear_caches()


@pytest.mark.parametrize("count", [1, 4, 40])
def test_picks_are_those_of_a_slow_loop(rng, count):
    vectors, clusters, taken, free = pool(rng, 80)
    points = Points(*map(jnp.asarray, (vectors, taken, free)))
    got = most_typical(points, jnp.asarray(clusters, jnp.int32), count)
    assert got.indices.tolist() == slow_picks(vectors.astype(np.float64), clusters, taken, free, count)
    assert (np.asarray(got.scores)[~free] == 0).all()


def test_the_pool_gets_as_many_clusters_as_labels(rng):
    vectors, _, taken, free = pool(rng, 60)
    points = Points(*map(jnp.asarray, (vectors, taken, free)))
    number = int(taken.sum()) + 5
    clusters = k_means(jax.random.key(3), points.vectors, one_stratum(60, number, 60)).assignment
    want = most_typical(points, clusters, 5)
    assert typiclust(jax.random.key(3), points, 5).indices.tolist() == want.indices.tolist()
    assert len(set(clusters.tolist())) <= number


def test_copies_are_still_picked_once_each():
    points = Points(jnp.ones((12, 2)), jnp.zeros(12, bool), jnp.ones(12, bool))
    found = typiclust(jax.random.key(0), points, 12)
    assert found.indices.tolist() == list(range(12))
    assert np.isfinite(np.asarray(found.scores)).all()
