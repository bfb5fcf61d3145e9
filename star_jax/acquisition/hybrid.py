"""Batches that are both uncertain and spread out: HUDS, task diversity, uncertain first, then diverse, and balanced.

Shapes: `N` pool, `D` width of a vector, `k` picks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from star_jax.acquisition import dynamic, selection
from star_jax.acquisition.clustering import Slots, k_means, one_stratum
from star_jax.acquisition.diversity import Points
from star_jax.acquisition.needs import Embedding, Feature, GradientSketch, Group
from star_jax.acquisition.scores import ByScore, Score, TopK
from star_jax.acquisition.strategy import Picks, PoolFeatures, Query

STRATA, CLUSTERS, MEMBERS = 5, 10, 10
"""Strata of HUDS; clusters in each at the most; and examples that a cluster should have."""

TASKS = 50
"""Clusters that stand for tasks where nobody has named any."""

Spread = Callable[[Array, Points, int], Picks]
"""(key, points, k) -> picks, as the functions of `diversity` are."""


@dataclass(frozen=True)
class BySpread:
    """Takes a batch by vectors alone: the `pick` of a strategy."""

    vector: Embedding | GradientSketch
    spread: Spread

    @property
    def needs(self) -> tuple[Feature, ...]:
        """The vectors."""
        return (self.vector,)

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks; what is labelled counts as taken."""
        points = Points(pool[self.vector], pool.labelled, pool.unlabelled)
        return _masked(self.spread(key, points, query.count), pool)


@dataclass(frozen=True)
class UncertainThenDiverse:
    """A diverse batch of the most uncertain examples: the `pick` of a strategy.

    As in Zhdanov 2019, "Diverse mini-batch active learning" (arXiv 1901.05954, section 3): the `factor`·k examples with
    the highest scores are kept, and the batch is spread out over those; any spread instead of weighted k-means.

    Attributes:
      score: any, of one measure or of several.
      vector: that distances are taken of.
      spread: how a batch is spread out; what is labelled counts as taken.
      factor: β.
    """

    score: Score
    vector: Embedding | GradientSketch
    spread: Spread
    factor: int = 10

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Those of the score, and the vectors."""
        return (*self.score.needs, self.vector)

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks, with the scores of the uncertainty."""
        kept = min(self.factor * query.count, pool.size)
        first = ByScore(self.score, TopK())(key, pool, replace(query, count=kept))
        # Where fewer are unlabelled than are kept, the others behind them cannot be picked.
        free = jnp.zeros_like(pool.unlabelled).at[first.indices].set(True) & pool.unlabelled
        found = self.spread(key, Points(pool[self.vector], pool.labelled, free), query.count)
        return Picks(found.indices, first.scores)


@dataclass(frozen=True)
class Balanced:
    """The highest scores of each group, as many labels for one as for another: the `pick` of a strategy.

    The next label is always for the group that has the fewest, of several the one with the highest score, until a group
    is used up. Labels of earlier rounds count where the data name the groups.

    Attributes:
      score: any.
      group: which examples belong together.
    """

    score: Score
    group: Group

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Those of the score, and the groups."""
        return (*self.score.needs, self.group)

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks, with the scores of the score."""
        scored = ByScore(self.score, TopK())(key, pool, replace(query, count=pool.size))
        assert scored.scores is not None
        counted = pool.labelled if self.group.by == "data" else jnp.zeros_like(pool.labelled)
        turn = _turns(jnp.nan_to_num(scored.scores, nan=-jnp.inf), pool[self.group], pool.unlabelled, counted)
        order = jnp.lexsort((-scored.scores, turn, ~pool.unlabelled))
        return Picks(order[: query.count].astype(jnp.int32), scored.scores)


def _turns(scores: Array, groups: Array, free: Array, counted: Array) -> Array:
    """For each free example, the labels that its group has before its turn, `N` int32, by scores within the group."""
    size = free.shape[0]
    order = jnp.lexsort((-scores, ~free, groups))
    everyone = jnp.bincount(groups, length=size)
    first = jnp.cumsum(everyone) - everyone
    place = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32)) - first[groups]
    return place + jnp.bincount(groups, counted.astype(jnp.int32), length=size)[groups]


@dataclass(frozen=True)
class Huds:
    """Hybrid uncertainty and diversity sampling: the `pick` of a strategy. As `huds`, on features of a pool."""

    score: Score
    vector: Embedding | GradientSketch
    weight: float = 0.5

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Those of the score, and the vectors."""
        return (*self.score.needs, self.vector)

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The highest hybrid scores."""
        uncertainty = jnp.where(pool.unlabelled, self.score(pool, query), 0)
        points = Points(pool[self.vector], pool.labelled, pool.unlabelled)
        scores = huds(key, uncertainty, points, self.weight)
        return Picks(selection.top_k(scores, pool.unlabelled, query.count), scores)


@jax.jit
def huds(key: Array, uncertainty: Array, points: Points, weight: float) -> Array:
    """Hybrid scores of HUDS (Azeemi, Qazi & Raza 2024, arXiv 2403.09259, section 3).

    The free examples are put into `STRATA` strata of equal size by their uncertainty; k-means finds `CLUSTERS` clusters
    in each, or as many as leave `MEMBERS` examples to each; an example's diversity is its distance to the centre of its
    cluster. The score is weight·uncertainty + (1 − weight)·diversity, both on [0, 1] over the pool.

    Args:
      key: PRNG key of the clustering.
      uncertainty: `N`, larger is more uncertain; where not free it is not looked at.
      points: the pool; `taken` is not looked at.
      weight: of uncertainty, in [0, 1].

    Returns:
      `N`, 0 where not free.
    """
    free, size = points.free, points.free.shape[0]
    place = selection.top_k(uncertainty, free, size)
    rank = jnp.zeros(size, jnp.int32).at[place].set(jnp.arange(size, dtype=jnp.int32))
    # What is not free is in a stratum of its own, with one centre that nobody looks at.
    strata = jnp.where(free, rank * STRATA // jnp.maximum(free.sum(), 1), STRATA).astype(jnp.int32)
    clusters = jnp.clip(free.sum() // (STRATA * MEMBERS), 1, CLUSTERS)
    room = jnp.where(jnp.arange(CLUSTERS) < clusters, jnp.arange(STRATA)[:, None], -1).reshape(-1)
    owners = jnp.append(room, STRATA).astype(jnp.int32)
    assignment, centres = k_means(key, points.vectors, Slots(strata, owners))
    distance = jnp.sqrt(jnp.square(points.vectors - centres[assignment]).sum(axis=1))
    return dynamic.blend(weight, dynamic.minmax(uncertainty, free), dynamic.minmax(distance, free))


@dataclass(frozen=True)
class TaskDiversity:
    """Tasks get labels in inverse proportion to the model's confidence: the `pick` of a strategy, as `by_task`.

    The protocol tells a strategy no tasks, so the clusters of the prompts' embeddings stand for them.
    """

    score: Score
    vector: Embedding

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Those of the score, and the vectors."""
        return (*self.score.needs, self.vector)

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks; a score is the weight of the next label of the example's task."""
        cluster_key, draw_key = jax.random.split(key)
        most = min(TASKS, pool.size)
        tasks, _ = k_means(cluster_key, pool[self.vector], one_stratum(pool.size, most, most))
        uncertainty = jnp.where(pool.unlabelled, self.score(pool, query), 0)
        points = Points(pool[self.vector], pool.labelled, pool.unlabelled)
        return by_task(draw_key, 1 - uncertainty, tasks, points, query.count)


@partial(jax.jit, static_argnames=("count",))
def by_task(key: Array, confidence: Array, tasks: Array, points: Points, count: int) -> Picks:
    """Labels spread over tasks with weights 1/confidence, at random within a task.

    The inverse confidence weighting of Arabelly et al. 2025 (arXiv 2507.21482). A task's confidence is the mean over
    its free examples. The labels are given out one by one, each to the task with the largest weight/(labels + 1), so
    that the numbers of labels, those of earlier rounds included, come to be in proportion to the weights (the divisor
    method of D'Hondt), and a task that is used up leaves its share to the others.

    Args:
      key: PRNG key.
      confidence: `N` in [0, 1]; where not free it is not looked at.
      tasks: `N` int32 in [0, N).
      points: the pool; `vectors` are not looked at.
      count: k, static.

    Returns:
      Picks; a score is the weight over the number of labels that the example's task has with it.
    """
    free, size = points.free, points.free.shape[0]
    sizes, labelled = (jnp.bincount(tasks, mask.astype(jnp.int32), length=size) for mask in (free, points.taken))
    total = jax.ops.segment_sum(jnp.where(free, confidence, 0), tasks, size)
    weight = 1 / jnp.maximum(total / jnp.maximum(sizes, 1), 1e-6)
    # 1. A random turn for each free example within its task.
    drawn = jnp.where(free, selection.noise(key, jax.random.uniform, size), 2)
    order = jnp.lexsort((drawn, tasks))
    everyone = jnp.bincount(tasks, length=size)
    first = jnp.cumsum(everyone) - everyone
    turn = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32)) - first[tasks]
    # 2. The labels in the order in which they are given out.
    scores = jnp.where(free, weight[tasks] / (labelled[tasks] + turn + 1), 0)
    return Picks(selection.top_k(scores, free, count), scores)


def _masked(picks: Picks, pool: PoolFeatures) -> Picks:
    """Scores of 0 where labelled, as the reports have them."""
    return picks if picks.scores is None else Picks(picks.indices, jnp.where(pool.unlabelled, picks.scores, 0))
