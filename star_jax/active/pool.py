"""Which examples of the pool are labelled, and since when. `N` is the pool's size."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

UNLABELLED = -1

SKIPPED = -2
"""Of an example that nobody can label: it is in no training set, and never picked again."""


class PoolState(NamedTuple):
    """The pool as the loop sees it.

    Attributes:
      labelled_in: `N` int32, the round an example was labelled in, `UNLABELLED`, or `SKIPPED`.
    """

    labelled_in: Array


def init_pool(size: int) -> PoolState:
    """A pool of which nothing is labelled."""
    return PoolState(jnp.full(size, UNLABELLED, jnp.int32))


def available(pool: PoolState) -> Array:
    """Mask `N` of examples that may still be picked."""
    return pool.labelled_in == UNLABELLED


def label(pool: PoolState, indices: Array, round_number: int) -> PoolState:
    """Moves examples, `k` int32 indices, from the unlabelled to the labelled ones; which they are is not checked."""
    return PoolState(pool.labelled_in.at[indices].set(round_number))


def skip(pool: PoolState, indices: Array) -> PoolState:
    """Takes examples, int32 indices, out of the pool without a label."""
    return PoolState(pool.labelled_in.at[indices].set(SKIPPED))
