"""What is done for one platform's sake, each with the figure that speaks for it, or against it.

The figures are ratios of times, without over with, on two CPU cores that were not idle (2026-11-28, jax 0.10.2), from
`python experiments/benchmarks/platform_tricks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = TypeVar("Tree")

_meant: list[Any] = []
"""The device that programs are made for, where that is not one of this machine."""


def target_device() -> Any:
    """The device that programs are made for: the default backend's, or that of `programs_for`."""
    return _meant[-1] if _meant else jax.devices()[0]


@contextmanager
def programs_for(device: Any) -> Iterator[None]:
    """Programs that are traced inside are made for a device of that kind, which need not be there."""
    _meant.append(device)
    try:
        yield
    finally:
        _meant.pop()


def computed_once(values: Tree) -> Tree:
    """Arrays that several others are made of, computed once.

    XLA merges elementwise steps into whatever reads them; a CPU would then take every exponential or rotation again for
    each reader. Scoring's statistics: 1.0 to 1.1. Rotations of whole layers: 0.98, which is nothing; it stays for now,
    since without it results would be rounded otherwise.
    """
    found: Tree = jax.lax.optimization_barrier(values)
    return found


def at_least_two_rows(queries: Array, axis: int) -> Array:
    """`queries`, doubled along an axis of one where they are of fewer bits than float32.

    A product of one narrow row is not taken by a CPU's fast kernels, one of two rows is. Ratio 1.1 to 1.6.
    The caller drops the second row of the result.
    """
    if queries.dtype == jnp.float32:
        return queries
    shape = [2 if place == axis % queries.ndim else size for place, size in enumerate(queries.shape)]
    return jnp.broadcast_to(queries, shape)


def before_the_loop_on_a_cpu(taken: Tree, take: Any) -> Tree:
    """`taken`, made before a loop, for a CPU; `take()`, the same made inside it, for accelerators.

    An accelerator's products read their part of a stacked array where it lies, and a second copy is saved; a CPU would
    copy each part in every step. Ratio 1.45.
    """
    found: Tree = jax.lax.platform_dependent(cpu=lambda: taken, default=take)
    return found
