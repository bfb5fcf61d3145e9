"""Greedy k-center (Sener & Savarese 2018, arXiv 1708.00489): a batch that leaves no part of the pool far away.

star-jax run --plugins docs/examples/k_center.py --strategies k_center,random
"""

import jax
import jax.numpy as jnp

import star_jax as sj

EMBEDDING = sj.Embedding(projection=64)


@sj.register_strategy("k_center", needs=[EMBEDDING])
def k_center(key, pool, query):
    """First the prompt nearest to the mean, then always the one farthest from those picked so far."""
    points = jnp.where(pool.unlabelled[:, None], pool[EMBEDDING], 0)
    mean = points.sum(axis=0) / pool.unlabelled.sum()

    def pick_next(carry, _):
        gap, latest = carry  # the distance of each prompt to the nearest pick, -inf where it may not be picked
        gap = jnp.minimum(gap, jnp.square(points - points[latest]).sum(axis=1)).at[latest].set(-jnp.inf)
        return (gap, jnp.argmax(gap)), latest

    gap = jnp.where(pool.unlabelled, jnp.inf, -jnp.inf)
    first = jnp.argmax(jnp.where(pool.unlabelled, -jnp.square(points - mean).sum(axis=1), -jnp.inf))
    return jax.lax.scan(pick_next, (gap, first), length=query.count)[1]
