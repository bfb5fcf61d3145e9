"""A program over the batches of a pool: dispatched ahead of the device, and joined in the order of the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.data.batching import Batch

AHEAD = 2
"""Batches that are dispatched before the oldest is waited for."""


def map_batches(
    run: Callable[[Batch], Any],
    batches: Iterable[Batch],
    group: int,
    size: int,
    on_batch: Callable[[int], None],
) -> Any:
    """Runs a program over batches and puts the results in the order of the examples.

    Each batch is made when its turn comes and its results are fetched when they are done, so that what is held does not
    grow with the batches.

    Args:
      run: maps a batch to a pytree of arrays, one entry an example.
      batches: at least one; they hold no example twice.
      group: rows of a batch that are one example.
      size: number of examples.
      on_batch: called with the number of examples of each batch, once the device has finished it.

    Returns:
      The pytree, with `size` entries in each leaf, on the default device; NaN, or 0 of whole numbers, for examples that
      are in no batch.
    """
    joined: Any = None
    # On the host: on the device, this would be a program of how the answers of a round happen to fill batches.
    for batch, result in paced(run, batches):
        index, real = batch.index[::group], batch.row_mask[::group]
        if joined is None:
            joined = jax.tree.map(lambda leaf: _nothing(size, leaf), result)
        _put(joined, result, index[real], real)
        on_batch(int(real.sum()))
    assert joined is not None, "there is no batch"
    return jax.tree.map(jnp.asarray, joined)


def paced(run: Callable[[Batch], Any], batches: Iterable[Batch]) -> Iterator[tuple[Batch, Any]]:
    """Runs every batch, and gives each with its results on the host, in order.

    At most `AHEAD` are dispatched ahead of the device, so that progress is real and queues stay short.
    """
    waiting: list[tuple[Batch, Any]] = []
    for batch in batches:
        waiting.append((batch, run(batch)))
        if len(waiting) > AHEAD:
            yield _fetched(waiting.pop(0))
    for entry in waiting:
        yield _fetched(entry)


def _fetched(entry: tuple[Batch, Any]) -> tuple[Batch, Any]:
    batch, result = entry
    return batch, jax.device_get(result)


def _nothing(size: int, part: np.ndarray) -> np.ndarray:
    shape = (size, *part.shape[1:])
    return np.full(shape, np.nan, part.dtype) if np.issubdtype(part.dtype, np.inexact) else np.zeros(shape, part.dtype)


def _put(joined: Any, result: Any, places: np.ndarray, real: np.ndarray) -> None:
    for whole, part in zip(jax.tree.leaves(joined), jax.tree.leaves(result), strict=True):
        whole[places] = part[real]
