"""Batches that are spread out: greedy selection on vectors, with what is labelled counted as selected before.

Each is a pure function of a key, vectors and a number of picks, traceable by `jit`, and gives `Picks`: indices, first
pick first, and for each example the value it was picked by, or would have been picked by last. Of equal values the
earlier example is picked. No array is as large as a large pool is long, squared.

Shapes: `N` pool, `D` width of a vector, `k` picks, `M` clients of facility location.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from star_jax.acquisition import selection
from star_jax.acquisition.distances import squared_distances, squared_to, squared_to_nearest
from star_jax.acquisition.strategy import Picks

EXACT = 2048
"""Facility location sees all pairs of a pool up to this size; of a larger one it samples."""

CLIENTS = 2048
"""Examples of a larger pool over which coverage is averaged."""

MISSED, MOST_CANDIDATES = 0.1, 4096
"""ε of stochastic greedy, and the most candidates of a step."""


class Points(NamedTuple):
    """A pool as points in space.

    Attributes:
      vectors: `N×D` float32, finite.
      taken: `N` bool, True where an example counts as selected already.
      free: `N` bool, True where an example may be picked.
    """

    vectors: Array
    taken: Array
    free: Array


def greedy(
    state: Any,
    gain: Callable[[Any], Array],
    update: Callable[[Any, Array], Any],
    free: Array,
    count: int,
    score: Callable[[Any], Array] | None = None,
) -> Picks:
    """Picks the example of the greatest gain, again and again.

    Args:
      state: what the gains depend on, a tree of arrays.
      gain: state -> `N`, finite where free.
      update: state and the index of a pick -> the next state.
      free: `N` bool, True where an example may be picked; at least `count`.
      count: k, static.
      score: state -> `N` for the reports; the gains where None.

    Returns:
      `k` indices, and `N` scores as they were last before an example was picked, 0 where it is not free.
    """

    def step(carry: tuple[Any, Array, Array], _: None) -> tuple[tuple[Any, Array, Array], Array]:
        state, left, scores = carry
        gains = gain(state)
        pick = jnp.argmax(jnp.where(left, gains, -jnp.inf))
        scores = jnp.where(left, gains if score is None else score(state), scores)
        return (update(state, pick), left.at[pick].set(False), scores), pick

    start = (state, free, jnp.zeros(free.shape[0]))
    (_, _, scores), picks = jax.lax.scan(step, start, length=count)
    return Picks(picks.astype(jnp.int32), scores)


@partial(jax.jit, static_argnames=("count",))
def k_center(key: Array, points: Points, count: int) -> Picks:
    """Greedy k-center, the core-set of Sener & Savarese 2018 (arXiv 1708.00489, algorithm 1).

    Always the example farthest from all that are taken or picked; where none is taken, the most central one comes
    first, and has the score 0.

    Args:
      key: not used.
      points: the pool.
      count: k, static.

    Returns:
      Picks; a score is the distance to the nearest one that was taken or picked before.
    """
    vectors = points.vectors - points.vectors.mean(axis=0)
    from_middle = jnp.square(vectors).sum(axis=1)

    def gain(gap: Array) -> Array:
        return jnp.where(jnp.isinf(gap), -from_middle, gap)

    def update(gap: Array, pick: Array) -> Array:
        return jnp.minimum(gap, squared_to(vectors, vectors[pick]))

    found = greedy(squared_to_nearest(vectors, vectors, points.taken), gain, update, points.free, count)
    assert found.scores is not None
    return Picks(found.indices, jnp.sqrt(jnp.maximum(found.scores, 0)))


@partial(jax.jit, static_argnames=("count",))
def log_det(key: Array, points: Points, count: int) -> Picks:
    """Greedy maximisation of log det(I + Σ x xᵀ) over what is taken and picked, the D-optimal design.

    The objective of FisherSFT (Deb et al., ICML 2025, arXiv 2505.14826), which bounds the information of a linear last
    layer; there a sentence is the sum over its tokens, here it is one vector. All vectors are divided by one number, so
    that their mean squared length is 1, and the identity is the prior.

    Args:
      key: not used.
      points: the pool.
      count: k, static.

    Returns:
      Picks; a score is the gain log(1 + xᵀ V⁻¹ x), nats.
    """
    scale = jnp.sqrt(jnp.square(points.vectors).sum(axis=1).mean())
    vectors = points.vectors / jnp.where(scale > 0, scale, 1)
    highest = jax.lax.Precision.HIGHEST
    known = jnp.where(points.taken[:, None], vectors, 0)
    identity = jnp.eye(vectors.shape[1])
    inverse = jnp.linalg.inv(identity + jnp.matmul(known.T, known, precision=highest))
    spread = (jnp.matmul(vectors, inverse, precision=highest) * vectors).sum(axis=1)

    def gain(state: tuple[Array, Array]) -> Array:
        return jnp.log1p(jnp.maximum(state[0], 0))

    def update(state: tuple[Array, Array], pick: Array) -> tuple[Array, Array]:
        # The inverse after one more x xᵀ (Sherman & Morrison 1950), and what that takes from each xᵀ V⁻¹ x.
        spread, inverse = state
        turned = jnp.matmul(inverse, vectors[pick], precision=highest)
        divisor = 1 + vectors[pick] @ turned
        taken = jnp.square(jnp.matmul(vectors, turned, precision=highest)) / divisor
        return spread - taken, inverse - jnp.outer(turned, turned) / divisor

    return greedy((spread, inverse), gain, update, points.free, count)


@partial(jax.jit, static_argnames=("count",))
def k_means_plus_plus(key: Array, points: Points, count: int) -> Picks:
    """k-means++ seeding (Arthur & Vassilvitskii 2007) as BADGE has it (Ash et al. 2020, arXiv 1906.03671, algorithm 1).

    The longest vector first, as in its authors' code; then each example with a probability in proportion to its squared
    distance to the nearest pick. What is taken plays no part, as in the paper: the gradient of a labelled example is
    small.

    Args:
      key: PRNG key.
      points: the pool.
      count: k, static.

    Returns:
      Picks; a score is the distance to the nearest pick before, of the first the vector's length.
    """
    vectors = points.vectors - points.vectors.mean(axis=0)
    length = jnp.square(points.vectors).sum(axis=1)

    def value(state: tuple[Array, Array]) -> Array:
        return jnp.where(state[1] == 0, length, state[0])

    def gain(state: tuple[Array, Array]) -> Array:
        # The largest of log-weights with Gumbel noise is a draw by the weights.
        drawn = selection.noise(jax.random.fold_in(key, state[1]), jax.random.gumbel, length.shape[0])
        return jnp.where(state[1] == 0, length, log_weights(state[0]) + drawn)

    def update(state: tuple[Array, Array], pick: Array) -> tuple[Array, Array]:
        return jnp.minimum(state[0], squared_to(vectors, vectors[pick])), state[1] + 1

    start = (jnp.full(length.shape[0], jnp.inf), jnp.zeros((), jnp.int32))
    found = greedy(start, gain, update, points.free, count, value)
    assert found.scores is not None
    return Picks(found.indices, jnp.sqrt(found.scores))


def log_weights(squared: Array) -> Array:
    """Logarithms of squared distances; what is at distance 0 comes behind all others, at random."""
    return jnp.log(jnp.maximum(squared, jnp.finfo(squared.dtype).tiny))


@partial(jax.jit, static_argnames=("count",))
def facility_location(key: Array, points: Points, count: int) -> Picks:
    """Greedy facility location: each example of the pool is to have a pick that is like it.

    Maximises Σ_i max_{j in S} s(i, j) with the similarity s = (1 + cos)/2 (Wei, Iyer & Bilmes 2015, "Submodularity in
    data subset selection and active learning", section 3), S with what is taken. Exact up to `EXACT` examples. In a
    larger pool each step compares ⌈N/k · ln 1/ε⌉ random candidates (stochastic greedy, Mirzasoleiman et al. 2015, arXiv
    1409.7938, algorithm 1), `MOST_CANDIDATES` at most, and the sum is over `CLIENTS` random examples, of which the mean
    differs from that of the pool by some 1/√`CLIENTS` with high probability (Hoeffding 1963).

    Args:
      key: PRNG key, used in a large pool.
      points: the pool.
      count: k, static.

    Returns:
      Picks; a score is the gain in mean similarity. In a large pool only picks have one.
    """
    length = jnp.sqrt(jnp.square(points.vectors).sum(axis=1, keepdims=True))
    unit = points._replace(vectors=points.vectors / jnp.where(length > 0, length, 1))
    if points.free.shape[0] <= EXACT:
        return _covered_exactly(unit, count)
    return _covered_by_samples(key, unit, count)


def _similarity(one: Array, other: Array) -> Array:
    """(1 + cos)/2 of unit vectors, from their squared distance; a vector of zeros has 3/4 to all, as one halfway."""
    return jnp.maximum(1 - squared_distances(one, other) / 4, 0)


def _covered_exactly(points: Points, count: int) -> Picks:
    alike = _similarity(points.vectors, points.vectors)

    def gain(covered: Array) -> Array:
        return jnp.maximum(alike - covered[:, None], 0).mean(axis=0)

    def update(covered: Array, pick: Array) -> Array:
        return jnp.maximum(covered, alike[:, pick])

    covered = jnp.where(points.taken, alike, 0).max(axis=1)
    return greedy(covered, gain, update, points.free, count)


def _covered_by_samples(key: Array, points: Points, count: int) -> Picks:
    size, vectors = points.free.shape[0], points.vectors
    client_key, candidate_key = jax.random.split(key)
    clients = vectors[selection.uniform(client_key, jnp.ones(size, bool), min(CLIENTS, size))]
    tried = min(math.ceil(size / max(count, 1) * math.log(1 / MISSED)), MOST_CANDIDATES, size)
    covered = jnp.maximum(1 - squared_to_nearest(clients, vectors, points.taken) / 4, 0)

    def step(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        # The first `left` places of `rest` are those that are still free.
        covered, rest = carry
        left = points.free.sum() - number
        places = jax.random.randint(jax.random.fold_in(candidate_key, number), (tried,), 0, left)
        alike = _similarity(clients, vectors[rest[places]])
        gains = jnp.maximum(alike - covered[:, None], 0).mean(axis=0)
        best = jnp.argmax(gains)
        pick = rest[places[best]]
        rest = rest.at[places[best]].set(rest[left - 1])
        return (jnp.maximum(covered, alike[:, best]), rest), (pick, gains[best])

    start = (covered, jnp.argsort(~points.free, stable=True).astype(jnp.int32))
    _, (picks, gains) = jax.lax.scan(step, start, jnp.arange(count))
    return Picks(picks, jnp.zeros(size).at[picks].set(gains))
