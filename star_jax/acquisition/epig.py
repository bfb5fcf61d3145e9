"""Expected predictive information gain: which answer would tell the most about the answers to other prompts.

Shapes: `N` pool, `M` targets, `K` samples, `C` answers of a closed set.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from star_jax.acquisition import selection
from star_jax.acquisition.needs import Feature, Probabilities
from star_jax.acquisition.scores import Selector
from star_jax.acquisition.strategy import Picks, PoolFeatures, Query

DRAWN = 100
"""Examples that stand for the pool as targets, drawn anew for each query, as in the paper's experiments."""

BLOCK = 256
"""Examples that are looked at together."""


@dataclass(frozen=True)
class ByInformation:
    """The examples of the largest gain: the `pick` of a strategy. What is unlabelled is what is to be predicted.

    Attributes:
      select: how a batch is taken by the gains.
    """

    select: Selector

    @property
    def needs(self) -> tuple[Feature, ...]:
        """Probabilities of the answers."""
        return (Probabilities(),)

    def __call__(self, key: Array, pool: PoolFeatures, query: Query) -> Picks:
        """The picks, with the gains."""
        draw_key, select_key = jax.random.split(key)
        targets = selection.uniform(draw_key, pool.unlabelled, min(DRAWN, pool.size))
        # Where fewer are unlabelled than are drawn, the others behind them do not count.
        counted, found = pool.unlabelled[targets], pool[Probabilities()]
        known = jnp.where(pool.unlabelled[:, None, None], found, 1 / found.shape[2])
        gains = jnp.where(pool.unlabelled, epig(known, known[targets], counted), 0)
        return Picks(self.select(select_key, gains, pool.unlabelled, query.count), gains)


@jax.jit
def epig(probabilities: Array, targets: Array, counted: Array) -> Array:
    """Mean over targets of the mutual information of an example's answer and a target's, nats: `N`.

    EPIG (Bickford Smith et al. 2023, arXiv 2304.08151): E_x* KL(p(y, y*) ‖ p(y) p(y*)), with the joint distribution
    p(y, y*) = 1/K Σ_k p_k(y | x) p_k(y* | x*) of models that agree on neither but are one model for both.

    Args:
      probabilities: `N×K×C` of each answer under each of K samples.
      targets: `M×K×C`.
      counted: `M` bool, which targets count.
    """

    def gain(own: Array) -> Array:
        def with_target(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
            target, counts = one
            joint = jnp.matmul(own.T, target, precision=jax.lax.Precision.HIGHEST) / own.shape[0]
            apart = own.mean(axis=0)[:, None] * target.mean(axis=0)
            # 0 · log 0 = 0; where the product is 0, so is the joint.
            there = joint > 0
            terms = joint * (jnp.log(jnp.where(there, joint, 1)) - jnp.log(jnp.where(there, apart, 1)))
            return total + jnp.where(counts, terms.sum(), 0), None

        total, _ = jax.lax.scan(with_target, jnp.zeros(()), (targets, counted))
        return jnp.maximum(total, 0) / jnp.maximum(counted.sum(), 1)

    found: Array = jax.lax.map(gain, probabilities, batch_size=min(BLOCK, probabilities.shape[0]))
    return found
