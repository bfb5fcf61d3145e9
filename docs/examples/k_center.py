"""Greedy k-center (Sener & Savarese 2018, arXiv 1708.00489): a batch that leaves no part of the pool far away.

star-jax run --plugins docs/examples/k_center.py --strategies my_k_center,random
"""

import jax
import jax.numpy as jnp

import star_jax as sj

EMBEDDING = sj.Embedding(projection=64)


@sj.register_strategy("my_k_center", needs=[EMBEDDING])
def my_k_center(key, pool, query):
    """Always the prompt farthest from all that are labelled or picked; first the most central one if there is none."""
    points, labelled = pool[EMBEDDING], ~pool.unlabelled

    def distances(point):
        return jnp.square(points - point).sum(axis=1)

    def pick_next(carry, _):
        gap, latest = carry  # the distance of each prompt to the nearest centre, -inf where it may not be picked
        gap = jnp.minimum(gap, distances(points[latest])).at[latest].set(-jnp.inf)
        return (gap, jnp.argmax(gap)), latest

    gap = jax.lax.map(lambda point: jnp.where(labelled, distances(point), jnp.inf).min(), points)
    start = jnp.where(labelled.any(), gap, -distances(points.mean(axis=0)))
    gap, start = (jnp.where(labelled, -jnp.inf, values) for values in (gap, start))
    return jax.lax.scan(pick_next, (gap, jnp.argmax(start)), length=query.count)[1]
