"""k-means against Lloyd's steps in plain loops, from the same seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.clustering import STEPS, Slots, k_means, lloyd, one_stratum, seeds


def slow_lloyd(vectors, centres, strata, owners):
    vectors, centres = vectors.astype(np.float64), centres.astype(np.float64)
    assignment = None
    for _ in range(STEPS + 1):
        found = []
        for vector, stratum in zip(vectors, strata, strict=True):
            allowed = [place for place in range(len(centres)) if owners[place] == stratum]
            found.append(min(allowed, key=lambda place: np.square(vector - centres[place]).sum()))
        if found == assignment:
            break
        assignment = found
        for place in set(found):
            centres[place] = vectors[[one == place for one in found]].mean(axis=0)
    return np.asarray(assignment), centres


def pool(rng, size=50):
    middles = rng.normal(size=(4, 3)) * 10
    return (middles[rng.integers(4, size=size)] + rng.normal(size=(size, 3))).astype(np.float32)


@pytest.mark.parametrize("number", [1, 4, 6])
def test_lloyds_steps(rng, number):
    vectors = pool(rng)
    slots = one_stratum(50, number, 6)
    centres = vectors[:6]
    got = jax.jit(lloyd)(vectors, centres, slots)
    want, want_centres = slow_lloyd(vectors, centres, *map(np.asarray, slots))
    assert got.assignment.tolist() == want.tolist()
    np.testing.assert_allclose(got.centres[:number], want_centres[:number], rtol=1e-4, atol=1e-4)


def test_strata_are_clustered_apart(rng):
    vectors, strata = jnp.asarray(pool(rng)), rng.integers(2, size=50)
    strata[:2] = 0, 1
    owners = np.asarray([0, 0, 1, 1, -1])
    slots = Slots(jnp.asarray(strata, jnp.int32), jnp.asarray(owners, jnp.int32))
    found = k_means(jax.random.key(0), vectors, slots)
    assert (owners[found.assignment] == strata).all()
    start = np.asarray(vectors[seeds(jax.random.key(0), vectors, slots)])
    assert found.assignment.tolist() == slow_lloyd(np.asarray(vectors), start, strata, owners)[0].tolist()


def test_seeds_are_apart_and_of_their_stratum(rng):
    vectors, strata = jnp.asarray(pool(rng)), np.arange(50) % 3
    slots = Slots(jnp.asarray(strata, jnp.int32), jnp.asarray([0, 1, 1, 2, 2, 2], jnp.int32))
    places = np.asarray(seeds(jax.random.key(1), vectors, slots))
    assert strata[places].tolist() == [0, 1, 1, 2, 2, 2]
    assert len(set(places.tolist())) == 6


def test_the_first_seed_is_drawn_uniformly(rng):
    """Over many keys; each share is a binomial one, within 5 of its standard deviations."""
    vectors, draws = jnp.asarray(pool(rng, 5)), 2000
    slots = one_stratum(5, 1, 1)
    drawn = jax.jit(jax.vmap(lambda key: seeds(key, vectors, slots)[0]))(jax.random.split(jax.random.key(0), draws))
    found = np.bincount(np.asarray(drawn), minlength=5) / draws
    assert (np.abs(found - 0.2) <= 5 * np.sqrt(0.2 * 0.8 / draws)).all()


def test_a_single_vector_is_its_own_centre(rng):
    vectors = pool(rng, 4)
    found = k_means(jax.random.key(0), vectors, one_stratum(4, 4, 4))
    assert sorted(found.assignment.tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(found.centres[found.assignment], vectors)


def test_equal_vectors_are_one_cluster():
    found = k_means(jax.random.key(0), jnp.ones((6, 2)), one_stratum(6, 3, 3))
    assert set(found.assignment.tolist()) == {0}
