"""Distances by products and in blocks, against differences of pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition import distances
from star_jax.acquisition.distances import BLOCK, squared_distances, squared_to, squared_to_nearest


def slow(points, others):
    return np.asarray([[np.square(one - other).sum() for other in others] for one in points.astype(np.float64)])


def test_all_pairs(rng):
    points, others = (rng.normal(size=(size, 9)).astype(np.float32) for size in (7, 5))
    np.testing.assert_allclose(squared_distances(points, others), slow(points, others), rtol=1e-4)
    np.testing.assert_allclose(squared_to(jnp.asarray(points), others[2]), slow(points, others)[:, 2], rtol=1e-5)


def test_equal_vectors_are_at_distance_0(rng):
    points = jnp.asarray(rng.normal(size=(40, 33)), jnp.float32)
    assert (jnp.diagonal(squared_distances(points, points)) == 0).all()
    assert (jnp.diagonal(jax.vmap(lambda point: squared_to(points, point))(points)) == 0).all()


@pytest.mark.parametrize("marked", [1, 3, BLOCK, BLOCK + 1, 150])
def test_the_nearest_marked_one(rng, marked):
    points, others = (rng.normal(size=(size, 5)).astype(np.float32) + 3 for size in (20, 150))
    mask = np.zeros(150, bool)
    mask[rng.permutation(150)[:marked]] = True
    got = jax.jit(squared_to_nearest)(points, others, mask)
    np.testing.assert_allclose(got, slow(points, others[mask]).min(axis=1), rtol=1e-4, atol=1e-5)


def test_none_is_near_where_none_is_marked():
    got = squared_to_nearest(jnp.ones((4, 2)), jnp.ones((3, 2)), jnp.zeros(3, bool))
    assert np.isinf(np.asarray(got)).all()


def test_no_array_holds_all_pairs(monkeypatch):
    """The largest array of the program has as many entries as the pool times a block, or times the width."""
    monkeypatch.setattr(distances, "BLOCK", 8)
    size, width = 1000, 16
    program = jax.make_jaxpr(squared_to_nearest)(jnp.ones((size, width)), jnp.ones((size, width)), jnp.ones(size, bool))
    assert largest(program.jaxpr) == size * width


def largest(jaxpr):
    """Entries of the largest array that is made anywhere in a program."""
    sizes = [np.prod(out.aval.shape, dtype=int) for equation in jaxpr.eqns for out in equation.outvars]
    inner = [
        largest(getattr(part, "jaxpr", part))
        for equation in jaxpr.eqns
        for part in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "eqns"))
        if hasattr(part, "eqns") or hasattr(part, "jaxpr")
    ]
    return max([*sizes, *inner])
