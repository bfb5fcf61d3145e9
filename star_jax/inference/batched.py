"""A program over the batches of a pool: dispatched ahead of the device, and joined in the order of the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.data.batching import Batch


def map_batches(
    run: Callable[[Batch], Any],
    batches: Sequence[Batch],
    group: int,
    size: int,
    on_batch: Callable[[int], None],
) -> Any:
    """Runs a program over batches and puts the results in the order of the examples.

    Args:
      run: maps a batch to a pytree of arrays, one entry an example.
      batches: that hold every example once.
      group: rows of a batch that are one example.
      size: number of examples.
      on_batch: called with the number of examples of each batch, once the device has finished the one before.

    Returns:
      The pytree, with `size` entries in each leaf, on the default device.
    """
    results = jax.device_get(list(paced(run, batches, group, on_batch)))
    place = places(batches, group, size)
    # On the host: on the device, this would be a program of how the answers of a round happen to fill batches.
    return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)[place]), *results)


def paced(
    run: Callable[[Batch], Any], batches: Iterable[Batch], group: int, on_batch: Callable[[int], None]
) -> Iterable[Any]:
    """Runs every batch, at most two ahead of the device, so that progress is real and queues stay short."""
    waiting: list[tuple[Any, int]] = []
    for batch in batches:
        result = run(batch)
        waiting.append((result, int(batch.row_mask.sum()) // group))
        if len(waiting) > 2:
            done, rows = waiting.pop(0)
            jax.block_until_ready(done)
            on_batch(rows)
        yield result
    for done, rows in waiting:
        jax.block_until_ready(done)
        on_batch(rows)


def places(batches: Sequence[Batch], group: int, size: int) -> np.ndarray:
    """Where each example's result stands in the concatenated batches."""
    place = np.full(size, -1, np.int64)
    start = 0
    for batch in batches:
        index, real = batch.index[::group], batch.row_mask[::group]
        place[index[real]] = start + np.flatnonzero(real)
        start += len(index)
    assert (place >= 0).all(), "every example must be in a batch"
    return place
