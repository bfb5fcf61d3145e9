"""A program over the batches of a pool: dispatched ahead of the device, and joined in the order of the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.data.batching import Batch
from star_jax.parallel.hosts import gathered

AHEAD = 2
"""Batches that are dispatched before the oldest is waited for."""


class BatchLog(Protocol):
    """Keeps the results of a pass as they come, so that a pass that was interrupted goes on where it was."""

    def take(self, batch: Batch) -> Sequence[np.ndarray] | None:
        """The results of the next batch, as leaves, where an earlier pass has kept them; None from then on."""
        ...

    def add(self, batch: Batch, leaves: Sequence[np.ndarray]) -> None:
        """Keeps the results of the next batch."""
        ...


Logs = Callable[[str], BatchLog | None]
"""Gives what keeps the results of the pass of a name; None keeps nothing."""


def no_logs(name: str) -> BatchLog | None:
    """Keeps nothing."""
    return None


Stream = Callable[[Iterable[Batch]], Iterator[tuple[Batch, Any]]]
"""Gives for batches each with its results, in order: a pytree of arrays, one entry an example."""


def map_batches(
    run: Callable[[Batch], Any],
    batches: Iterable[Batch],
    group: int,
    size: int,
    on_batch: Callable[[int], None],
    log: BatchLog | None = None,
) -> Any:
    """`map_stream` of a program that maps a batch to its results."""
    return map_stream(partial(_ahead, run), batches, group, size, on_batch, log)


def map_stream(
    stream: Stream,
    batches: Iterable[Batch],
    group: int,
    size: int,
    on_batch: Callable[[int], None],
    log: BatchLog | None = None,
) -> Any:
    """Runs programs over batches and puts the results in the order of the examples.

    Each batch is made when its turn comes and its results are fetched when they are done, so that what is held does not
    grow with the batches.

    Args:
      stream: gives the results.
      batches: at least one; they hold no example twice.
      group: rows of a batch that are one example.
      size: number of examples.
      on_batch: called with the number of examples of each batch, once the device has finished it.
      log: keeps results; what it has already is not computed again, but for the last batch.

    Returns:
      The pytree, with `size` entries in each leaf, on the default device; NaN, or 0 of whole numbers, for examples that
      are in no batch.
    """
    joined: list[np.ndarray] = []
    tree: Any = None
    # On the host: on the device, this would be a program of how the answers of a round happen to fill batches.
    for done in _results(stream, batches, log):
        index, real = done.batch.index[::group], done.batch.row_mask[::group]
        joined = joined or [_nothing(size, leaf) for leaf in done.leaves]
        for whole, part in zip(joined, done.leaves, strict=True):
            whole[index[real]] = part[real]
        tree = done.tree
        on_batch(int(real.sum()))
    assert tree is not None, "there is no batch"
    return jax.tree.unflatten(tree, map(jnp.asarray, joined))


class _Done(NamedTuple):
    """A batch with its results on the host; their structure is None where they were kept."""

    batch: Batch
    leaves: Sequence[np.ndarray]
    tree: Any


def _ahead(run: Callable[[Batch], Any], batches: Iterable[Batch]) -> Iterator[tuple[Batch, Any]]:
    """At most `AHEAD` batches are dispatched ahead of the device, so that progress is real and queues stay short."""
    waiting: list[tuple[Batch, Any]] = []
    for batch in batches:
        waiting.append((batch, gathered(run(batch))))
        if len(waiting) > AHEAD:
            yield waiting.pop(0)
    yield from waiting


def _results(stream: Stream, batches: Iterable[Batch], log: BatchLog | None) -> Iterator[_Done]:
    """Every batch with its results, in order: those that were kept, then those that are computed.

    The last batch is always computed: it tells the structure of the results.
    """
    source = _with_last(batches)
    rest: list[Batch] = []
    for batch, last in source:
        kept = None if log is None or last else log.take(batch)
        if kept is None:
            rest.append(batch)
            break
        yield _Done(batch, kept, None)
    for batch, result in stream(chain(rest, (batch for batch, _ in source))):
        leaves, tree = jax.tree.flatten(jax.device_get(result))
        if log is not None:
            log.add(batch, leaves)
        yield _Done(batch, leaves, tree)


def _with_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch, and whether it is the last one."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield before, False
        before = batch
    if before is not None:
        yield before, True


def _nothing(size: int, part: np.ndarray) -> np.ndarray:
    shape = (size, *part.shape[1:])
    return np.full(shape, np.nan, part.dtype) if np.issubdtype(part.dtype, np.inexact) else np.zeros(shape, part.dtype)
