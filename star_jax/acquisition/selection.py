"""From scores to the batch to label: most uncertain first, stochastic, or uniform.

All take the whole pool with a mask and return exactly `count` distinct positions; `count` is static and must not
exceed the number of available entries, which only the caller can check (it is an array value). Noise is drawn per
example from `fold_in(key, index)`, so that it does not depend on the size of the pool. N pool.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array


def top_k(scores: Array, available: Array, count: int) -> Array:
    """The `count` highest scores, highest first; equal scores in order of index, which is the order of ids.

    Args:
      scores: `N`.
      available: `N` bool, True where the example may be picked.
      count: number of picks, static.

    Returns:
      `count` int32 indices.

    Raises:
      ValueError: `count` is negative or larger than N.
    """
    return _highest(scores, jnp.zeros_like(available), available, count)


def power(key: Array, scores: Array, available: Array, count: int, power: float) -> Array:
    """Sample `count` without replacement with probability proportional to score ** `power`.

    Gumbel-top-k on `power`·log(score): the power acquisition of Kirsch et al. 2021 (arXiv 2106.12059), PowerBALD where
    the score is BALD. It needs scores >= 0, which every measure is. A combination that goes below 0 (z-scores, a
    difference) is shifted first so that its least available score is 0. A score of 0 comes after all others, at random
    among its equals.

    Args:
      key: PRNG key.
      scores: `N`.
      available: `N` bool.
      count: number of picks, static.
      power: coldness; 0 is uniform, and the larger it is the closer to `top_k`.

    Returns:
      `count` int32 indices.
    """
    lowest = jnp.where(available, scores, jnp.inf).min()
    positive = jnp.where(available, scores - jnp.minimum(lowest, 0), 0)
    log_weight = power * jnp.log(jnp.where(positive > 0, positive, 1))
    return _highest(log_weight + noise(key, jax.random.gumbel, scores.shape[0]), positive == 0, available, count)


def uniform(key: Array, available: Array, count: int) -> Array:
    """`count` available entries drawn uniformly without replacement, as int32 indices in random order."""
    return top_k(noise(key, jax.random.uniform, available.shape[0]), available, count)


def _highest(scores: Array, last: Array, available: Array, count: int) -> Array:
    """`count` available entries by descending score, those that are to come `last` (`N` bool) behind all others."""
    chex.assert_rank([scores, available], 1)
    chex.assert_equal_shape([scores, available, last])
    chex.assert_type([available, last], bool)
    if not 0 <= count <= scores.shape[0]:
        raise ValueError(f"cannot pick {count} of {scores.shape[0]} examples")
    # A stable sort on (not available, last, -score): availability goes first, so that no score, not even -inf, can put
    # an available entry behind one that is not. lax.top_k promises no order of ties on every backend.
    order = jnp.lexsort((-jnp.where(available, scores, 0), last, ~available))
    return order[:count].astype(jnp.int32)


def noise(key: Array, draw: Callable[[Array], Array], size: int) -> Array:
    """One draw an example, from a key of its own: `size`.

    Args:
      key: PRNG key.
      draw: takes a key and gives a scalar, as `jax.random.gumbel` does.
      size: number of examples.
    """
    return jax.vmap(lambda index: draw(jax.random.fold_in(key, index)))(jnp.arange(size))
