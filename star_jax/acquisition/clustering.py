"""k-means on a pool: seeded by k-means++, then Lloyd's steps, with a number of clusters that may be traced.

Shapes: `N` pool, `D` width of a vector, `C` the most clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from star_jax.acquisition import selection
from star_jax.acquisition.distances import squared_distances, squared_to
from star_jax.acquisition.diversity import log_weights

STEPS = 20
"""Lloyd's steps at the most; it stops before when nothing moves."""

ROWS = 1024
"""Vectors that are compared with all centres at once."""


class Slots(NamedTuple):
    """Room for clusters.

    A pool may be in strata, each of which is clustered by itself: a vector belongs to a centre of its own stratum.

    Attributes:
      strata: `N` int32, the stratum of each vector; 0 throughout for none.
      owners: `C` int32, the stratum of each centre; -1 for one that is not used. Each stratum with vectors has one.
    """

    strata: Array
    owners: Array


def one_stratum(size: int, number: Array | int, most: int) -> Slots:
    """`number` clusters of a pool as a whole, in room for `most`; the number may be traced."""
    return Slots(jnp.zeros(size, jnp.int32), jnp.where(jnp.arange(most) < number, 0, -1).astype(jnp.int32))


class Clusters(NamedTuple):
    """A clustering.

    Attributes:
      assignment: `N` int32, the cluster of each vector.
      centres: `C×D`, the mean of each cluster; of one that has no vector, where it last was.
    """

    assignment: Array
    centres: Array


@jax.jit
def k_means(key: Array, vectors: Array, slots: Slots) -> Clusters:
    """Clusters of small squared distance to their means (Lloyd 1982), from k-means++ (Arthur & Vassilvitskii 2007).

    Args:
      key: PRNG key of the seeding.
      vectors: `N×D` float32.
      slots: strata, and room for clusters.
    """
    return lloyd(vectors, vectors[seeds(key, vectors, slots)], slots)


def seeds(key: Array, vectors: Array, slots: Slots) -> Array:
    """`C` int32 places to start from: each in proportion to the squared distance to those before, within its stratum.

    Arguments as `k_means`. A stratum with fewer different vectors than centres has one of them twice.
    """
    vectors = vectors - vectors.mean(axis=0)

    def step(gap: Array, centre: tuple[Array, Array]) -> tuple[Array, Array]:
        number, owner = centre
        inside = slots.strata == owner
        weights = jnp.where(jnp.isinf(gap), 0, log_weights(gap))
        drawn = selection.noise(jax.random.fold_in(key, number), jax.random.gumbel, gap.shape[0])
        place = jnp.argmax(jnp.where(inside, weights + drawn, -jnp.inf))
        return jnp.where(inside, jnp.minimum(gap, squared_to(vectors, vectors[place])), gap), place

    numbers = jnp.arange(slots.owners.shape[0])
    start = jnp.full(vectors.shape[0], jnp.inf, vectors.dtype)
    return jax.lax.scan(step, start, (numbers, slots.owners))[1].astype(jnp.int32)


def lloyd(vectors: Array, centres: Array, slots: Slots) -> Clusters:
    """Lloyd's steps from given centres, until nothing moves or there were `STEPS`.

    Args:
      vectors: `N×D` float32.
      centres: `C×D`.
      slots: strata, and which centres are used.
    """
    number, middle = centres.shape[0], vectors.mean(axis=0)

    def nearest(centres: Array) -> Array:
        near = centres - middle

        def of_row(row: tuple[Array, Array]) -> Array:
            vector, stratum = row
            allowed = slots.owners == stratum
            return jnp.argmin(jnp.where(allowed, squared_distances(vector[None] - middle, near)[0], jnp.inf))

        return jax.lax.map(of_row, (vectors, slots.strata), batch_size=ROWS).astype(jnp.int32)

    def means(assignment: Array, centres: Array) -> Array:
        sizes = jax.ops.segment_sum(jnp.ones_like(vectors[:, 0]), assignment, number)
        sums = jax.ops.segment_sum(vectors, assignment, number)
        return jnp.where(sizes[:, None] > 0, sums / jnp.maximum(sizes, 1)[:, None], centres)

    def moves(state: tuple[Array, Clusters, Array]) -> Array:
        return state[2] & (state[0] < STEPS)

    def step(state: tuple[Array, Clusters, Array]) -> tuple[Array, Clusters, Array]:
        number_of_steps, (assignment, centres), _ = state
        centres = means(assignment, centres)
        found = nearest(centres)
        return number_of_steps + 1, Clusters(found, centres), (found != assignment).any()

    first = Clusters(nearest(centres), centres)
    return jax.lax.while_loop(moves, step, (jnp.zeros((), jnp.int32), first, jnp.ones((), bool)))[1]
