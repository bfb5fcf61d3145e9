"""TypiClust: the most typical example of each cluster that has no label yet.

Hacohen, Dekel & Weinshall 2022, "Active learning on a budget: opposite strategies suit high and low budgets" (arXiv
2202.02794), section 3.2 and algorithm 1, with the numbers of its authors' code.

Shapes: `N` pool, `D` width of a vector, `C` the most clusters, `k` picks.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from star_jax.acquisition.clustering import k_means, one_stratum
from star_jax.acquisition.distances import squared_distances
from star_jax.acquisition.diversity import Points
from star_jax.acquisition.strategy import Picks

NEIGHBOURS = 20
"""Nearest neighbours over which distances are averaged; half the cluster where that is less."""

MOST_CLUSTERS, SMALL = 500, 5
"""Clusters at the most; and the size up to which a cluster comes after all others."""

_BLOCK = 128
_NEAR = 1e-5
"""Added to mean distances, so that copies of an example are not infinitely typical."""


@partial(jax.jit, static_argnames=("count",))
def typiclust(key: Array, points: Points, count: int) -> Picks:
    """Clusters the pool into as many clusters as there will be labels, and picks from those with fewest labels.

    Args:
      key: PRNG key of the clustering.
      points: the pool; `taken` are the labelled ones.
      count: k, static.

    Returns:
      Picks; a score is the typicality within the cluster.
    """
    size = points.free.shape[0]
    number = points.taken.sum() + count
    found = k_means(key, points.vectors, one_stratum(size, number, min(MOST_CLUSTERS, size)))
    return most_typical(points, found.assignment, count)


@partial(jax.jit, static_argnames=("count",))
def most_typical(points: Points, clusters: Array, count: int) -> Picks:
    """Goes round the clusters, those with fewest labels first, then the largest, and takes the most typical of each.

    Clusters of `SMALL` examples or fewer come when all others are used up; in the authors' code, never.

    Args:
      points: the pool.
      clusters: `N` int32 in [0, N), the cluster of each example.
      count: k, static.

    Returns:
      Picks; a score is the typicality.
    """
    size, free = points.free.shape[0], points.free
    sizes = jnp.bincount(clusters, length=size)
    labelled = jnp.bincount(clusters, points.taken.astype(jnp.int32), length=size)
    # What cannot be picked is in a group of its own, and nobody's neighbour.
    groups = jnp.where(free, clusters, size)
    scores = typicality(points.vectors, groups)
    # 1. Each example's turn within its cluster: the number of more typical ones.
    first = _first_places(groups)
    order = jnp.lexsort((-scores, groups))
    turn = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32)) - first[groups]
    # 2. All first turns, then all second ones, and so on.
    own_size, own_labels = sizes[clusters], labelled[clusters]
    order = jnp.lexsort((clusters, -own_size, own_labels, turn, own_size <= SMALL, ~free))
    return Picks(order[:count].astype(jnp.int32), jnp.where(free, scores, 0))


@jax.jit
def typicality(vectors: Array, groups: Array) -> Array:
    """1 / mean distance to the nearest neighbours of the same group; 0 for the only one of a group.

    Sorted by group, a block of rows is compared with the blocks of its groups, so that the time grows with the sum of
    the groups' squared sizes.

    Args:
      vectors: `N×D` float32.
      groups: `N` int32 in [0, N]; those in group N are left out and get 0.

    Returns:
      `N` float32.
    """
    size = vectors.shape[0]
    block = min(_BLOCK, size)
    blocks = -(-size // block)
    order = jnp.argsort(groups, stable=True)
    more = (blocks + 1) * block - size
    rows = jnp.pad((vectors - vectors.mean(axis=0))[order], ((0, more), (0, 0)))
    owner = jnp.pad(groups[order], (0, more), constant_values=size)
    first, sizes = _first_places(groups), jnp.bincount(groups, length=size + 1)
    neighbours = jnp.clip(sizes // 2, 1, NEIGHBOURS)

    def of_block(begin: Array) -> Array:
        own, own_rows = (jax.lax.dynamic_slice_in_dim(array, begin, block) for array in (owner, rows))
        last = own.max(where=own < size, initial=0)
        end = first[last] + sizes[last]

        def is_left(state: tuple[Array, Array]) -> Array:
            return state[0] < end

        def next_block(state: tuple[Array, Array]) -> tuple[Array, Array]:
            at, nearest = state
            other, other_rows = (jax.lax.dynamic_slice_in_dim(array, at, block) for array in (owner, rows))
            places, other_places = begin + jnp.arange(block), at + jnp.arange(block)
            same = (own[:, None] == other) & (places[:, None] != other_places) & (own[:, None] < size)
            found = jnp.where(same, squared_distances(own_rows, other_rows), jnp.inf)
            best, _ = jax.lax.top_k(-jnp.concatenate([nearest, found], axis=1), NEIGHBOURS)
            return at + block, -best

        start = (first[own[0]], jnp.full((block, NEIGHBOURS), jnp.inf))
        nearest = jnp.sqrt(jax.lax.while_loop(is_left, next_block, start)[1])
        used = jnp.arange(NEIGHBOURS) < neighbours[own][:, None]
        mean = jnp.where(used, nearest, 0).sum(axis=1) / neighbours[own]
        return jnp.where(own < size, 1 / (mean + _NEAR), 0)

    found = jax.lax.map(of_block, jnp.arange(blocks) * block).reshape(-1)[:size]
    return jnp.zeros(size).at[order].set(found)


def _first_places(groups: Array) -> Array:
    """`N+1` places at which each group begins when a pool is sorted by group."""
    sizes = jnp.bincount(groups, length=groups.shape[0] + 1)
    return jnp.cumsum(sizes) - sizes
