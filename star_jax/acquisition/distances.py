"""Distances between vectors of a pool, in blocks: no array here is as large as the pool is long, squared.

Shapes: `N` and `M` vectors, `D` their width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

BLOCK = 64
"""Vectors that a whole pool is compared with at once."""

_ROUNDING = 1e-6
"""Squared distances below this share of the squared lengths are rounding errors of the difference of products."""


def squared_distances(points: Array, others: Array) -> Array:
    """Squared Euclidean distances of all pairs, by one product of matrices.

    Args:
      points: `N×D` float32. Their mean should be near 0: the rounding error grows with the vectors' lengths.
      others: `M×D`.

    Returns:
      `N×M`, exactly 0 where they are too small to be told from a rounding error.
    """
    lengths = jnp.square(points).sum(axis=1)[:, None] + jnp.square(others).sum(axis=1)
    products = jnp.matmul(points, others.T, precision=jax.lax.Precision.HIGHEST)
    found = lengths - 2 * products
    return jnp.where(found > _ROUNDING * lengths, found, 0)


def squared_to(points: Array, point: Array) -> Array:
    """Squared Euclidean distances `N` of `N×D` vectors to a single one, `D`, as `squared_distances`.

    A product, since differences of all entries take 6.5 times as long (100,000 vectors of 256 on a CPU of two cores).
    """
    return squared_distances(points, point[None])[:, 0]


def squared_to_nearest(points: Array, others: Array, marked: Array) -> Array:
    """Squared Euclidean distance of each vector to the nearest of those that are marked.

    It takes time in proportion to the number that are marked, which need not be known when this is compiled.

    Args:
      points: `N×D` float32.
      others: `M×D`.
      marked: `M` bool.

    Returns:
      `N`; infinite where none is marked.
    """
    size = others.shape[0]
    block = min(BLOCK, size)
    middle = others.mean(axis=0)
    centred, rest, number = points - middle, others - middle, marked.sum()
    # What is marked comes first; the last block is filled up.
    places = jnp.pad(jnp.argsort(~marked, stable=True), (0, block))

    def is_left(state: tuple[Array, Array]) -> Array:
        return state[0] < number

    def next_block(state: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, nearest = state
        chosen = rest[jax.lax.dynamic_slice_in_dim(places, begin, block)]
        found = jnp.where(begin + jnp.arange(block) < number, squared_distances(centred, chosen), jnp.inf)
        return begin + block, jnp.minimum(nearest, found.min(axis=1))

    start = (jnp.zeros((), number.dtype), jnp.full(points.shape[0], jnp.inf, points.dtype))
    return jax.lax.while_loop(is_left, next_block, start)[1]
