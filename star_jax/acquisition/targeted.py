"""Batches that are like given target prompts: RDS+ and SIFT. They see embeddings of the pool and of the targets.

Shapes: `N` pool, `T` targets, `D` width of a vector, `k` picks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from star_jax.acquisition.diversity import Points, greedy
from star_jax.acquisition.needs import Embedding, Feature, Targets
from star_jax.acquisition.strategy import Picks, PoolFeatures, Query

NOISE = 0.01
"""λ of SIFT: variance of what an example says, where a vector has length 1."""


@dataclass(frozen=True)
class RoundRobin:
    """Targets choose in turn: the `pick` of a strategy, as `round_robin`, on features of a pool."""

    vector: Embedding

    @property
    def needs(self) -> tuple[Feature, ...]:
        """The vectors of pool and targets."""
        return (self.vector, Targets(self.vector))

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks; the first turn is that of the target behind the last one of the query before."""
        targets = pool[Targets(self.vector)]
        first = jnp.asarray(query.index * query.count) % targets.shape[0]
        return round_robin(pool[self.vector], targets, pool.unlabelled, first, query.count)


@dataclass(frozen=True)
class Informative:
    """What tells the most about targets: the `pick` of a strategy, as `sift`, on features of a pool."""

    vector: Embedding

    @property
    def needs(self) -> tuple[Feature, ...]:
        """The vectors of pool and targets."""
        return (self.vector, Targets(self.vector))

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks; what is labelled is known already."""
        points = Points(pool[self.vector], pool.labelled, pool.unlabelled)
        found = sift(points, pool[Targets(self.vector)], query.count)
        return Picks(found.indices, jnp.where(pool.unlabelled, found.scores, 0))


@partial(jax.jit, static_argnames="count")
def round_robin(vectors: Array, targets: Array, free: Array, first: Array, count: int) -> Picks:
    """The selection of RDS+ (Ivison et al. 2025, arXiv 2503.01807): one target after the other takes what is most like
    it, by the cosine of their embeddings, of what nobody has taken yet.

    There the embedding reads prompt and response; here there is no response yet.

    Args:
      vectors: `N×D` of the pool.
      targets: `T×D`.
      free: `N` bool, True where an example may be picked.
      first: number of the target that chooses first.
      count: k, static.

    Returns:
      Picks; a score is the cosine to the nearest target, 0 where it is not free.
    """
    units, aims = _units(vectors), _units(targets)
    turns = aims[(first + jnp.arange(count)) % targets.shape[0]]

    def step(left: Array, aim: Array) -> tuple[Array, Array]:
        pick = jnp.argmax(jnp.where(left, _product(units, aim), -jnp.inf))
        return left.at[pick].set(False), pick.astype(jnp.int32)

    def nearer(best: Array, aim: Array) -> tuple[Array, None]:
        return jnp.maximum(best, _product(units, aim)), None

    picks = jax.lax.scan(step, free, turns)[1]
    best = jax.lax.scan(nearer, jnp.full(free.shape[0], -jnp.inf), aims)[0]
    return Picks(picks, jnp.where(free, best, 0))


@partial(jax.jit, static_argnames="count")
def sift(points: Points, targets: Array, count: int) -> Picks:
    """The selection of SIFT (Hübotter et al. 2025, arXiv 2410.08020, section 3): always the example after which the
    least is left unknown about the targets.

    What is unknown about x* when X is known is σ²(x*) = k(x*, x*) − k_X(x*)ᵀ (K_X + λ I)⁻¹ k_X(x*), with the inner
    product of vectors of length 1 as the kernel k. There one prompt is the target; here the sum over all of them
    counts, what is labelled is in X from the start, and an example is taken once. The pool's mean is taken away from
    all vectors first. After a pick v, the covariance of any two is what it was less cov(·, v) cov(v, ·)/(σ²(v) + λ).

    Args:
      points: the pool.
      targets: `T×D`.
      count: k, static.

    Returns:
      Picks; a score is the fall of Σ σ²(x*).
    """
    middle = points.vectors.mean(axis=0)
    units, aims = _units(points.vectors - middle), _units(targets - middle)
    # (I + XᵀX/λ)⁻¹: what is known, as a covariance of the D directions (Woodbury 1950).
    known = jnp.where(points.taken[:, None], units, 0)
    unknown = jnp.linalg.inv(jnp.eye(units.shape[1]) + _product(known.T, known) / NOISE)
    turned = _product(units, unknown)
    start = (unknown, (turned * units).sum(axis=1), _product(turned, aims.T))

    def gain(state: tuple[Array, Array, Array]) -> Array:
        _, variance, across = state
        return jnp.square(across).sum(axis=1) / (jnp.maximum(variance, 0) + NOISE)

    def update(state: tuple[Array, Array, Array], pick: Array) -> tuple[Array, Array, Array]:
        unknown, variance, across = state
        direction = _product(unknown, units[pick])
        shared, divisor = _product(units, direction), units[pick] @ direction + NOISE
        across = across - jnp.outer(shared, across[pick]) / divisor
        return unknown - jnp.outer(direction, direction) / divisor, variance - jnp.square(shared) / divisor, across

    return greedy(start, gain, update, points.free, count)


def _units(vectors: Array) -> Array:
    length = jnp.sqrt(jnp.square(vectors).sum(axis=1, keepdims=True))
    return vectors / jnp.where(length > 0, length, 1)


def _product(one: Array, other: Array) -> Array:
    return jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)
