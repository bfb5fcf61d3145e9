"""Pieces that strategies by score are composed of: a feature, a scale, a blend, a difference, and how a batch is taken.

Each piece is a frozen dataclass that is called with the pool and the query and gives `N` scores, so that compositions
compare by value and `jit` knows them again. STAR is

    ByScore(Blend(released_schedule, Scaled(rank, base), Scaled(rank, full)), TopK())

Shapes: `N` pool, `k` picks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from star_jax.acquisition import dynamic, selection
from star_jax.acquisition.needs import Embedding, Feature, GradientSketch, Measure
from star_jax.acquisition.strategy import Picks, PoolFeatures, Query


class Score(Protocol):
    """`N` scores of a pool. Larger is picked first; what is not unlabelled means nothing."""

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Features that it reads."""
        ...

    def __call__(self, pool: PoolFeatures, query: Query) -> Array:
        """`N` float32."""
        ...


@dataclass(frozen=True)
class Value:
    """A measure as it is."""

    measure: Measure

    @property
    def needs(self) -> tuple[Feature, ...]:
        """The measure."""
        return (self.measure,)

    def __call__(self, pool: PoolFeatures, query: Query) -> Array:
        """The measure's array."""
        return pool[self.measure]


@dataclass(frozen=True)
class Length:
    """The Euclidean length of a vector: of a gradient's sketch, how far the example would move the adapter."""

    vector: Embedding | GradientSketch

    @property
    def needs(self) -> tuple[Feature, ...]:
        """The vector."""
        return (self.vector,)

    def __call__(self, pool: PoolFeatures, query: Query) -> Array:
        """The lengths."""
        return jnp.sqrt(jnp.square(pool[self.vector]).sum(axis=1))


@dataclass(frozen=True)
class Scaled:
    """A score on a scale that the whole unlabelled pool sets: `dynamic.minmax`, `zscore`, `rank` or `unscaled`."""

    normaliser: dynamic.Normaliser
    score: Score

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Those of the score."""
        return self.score.needs

    def __call__(self, pool: PoolFeatures, query: Query) -> Array:
        """The scaled scores."""
        return self.normaliser(self.score(pool, query), pool.unlabelled)


@dataclass(frozen=True)
class Blend:
    """λ(t)·base + (1 − λ(t))·full: STAR's dynamic uncertainty (arXiv 2403.01165)."""

    schedule: dynamic.Schedule
    base: Score
    full: Score

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Those of both, the base's first."""
        return (*self.base.needs, *self.full.needs)

    def __call__(self, pool: PoolFeatures, query: Query) -> Array:
        """The blended scores."""
        weight = self.schedule(query.index, query.total)
        return dynamic.blend(weight, self.base(pool, query), self.full(pool, query))


@dataclass(frozen=True)
class Difference:
    """full − base: the paper's ablation `subtract`."""

    base: Score
    full: Score

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Those of both, the base's first."""
        return (*self.base.needs, *self.full.needs)

    def __call__(self, pool: PoolFeatures, query: Query) -> Array:
        """The differences."""
        return dynamic.subtract(self.base(pool, query), self.full(pool, query))


Selector = Callable[[Array, Array, Array, int], Array]
"""(key, scores `N`, unlabelled `N`, k) -> `k` indices."""


@dataclass(frozen=True)
class TopK:
    """The highest scores, highest first."""

    def __call__(self, key: Array, scores: Array, unlabelled: Array, count: int) -> Array:
        """`k` indices; the key is not used."""
        return selection.top_k(scores, unlabelled, count)


@dataclass(frozen=True)
class Power:
    """A draw with probability proportional to score ** `coldness` (PowerBALD, arXiv 2106.12059)."""

    coldness: float

    def __call__(self, key: Array, scores: Array, unlabelled: Array, count: int) -> Array:
        """`k` indices."""
        return selection.power(key, scores, unlabelled, count, self.coldness)


@dataclass(frozen=True)
class ByScore:
    """Scores the pool and takes a batch by it: the `pick` of a strategy.

    An example with a feature that is not finite gets the score NaN and leaves the others' scores alone.
    """

    score: Score
    select: Selector

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks, with their scores."""
        # 1. Which examples have numbers for everything that is read.
        finite = jnp.ones_like(pool.unlabelled)
        for need in self.score.needs:
            finite &= jnp.isfinite(pool[need]).reshape(pool.size, -1).all(axis=1)
        # 2. Scores over those, so that a scale is set by numbers alone.
        scores = self.score(replace(pool, unlabelled=pool.unlabelled & finite), query)
        scores = jnp.where(pool.unlabelled, jnp.where(finite, scores, jnp.nan), 0)
        # 3. The batch.
        return Picks(self.select(key, scores, pool.unlabelled, query.count), scores)
