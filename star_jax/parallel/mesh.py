"""All local devices as one row of workers: each takes its share of a batch's rows, and the whole model.

Shapes: `B` rows of a batch, a multiple of the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")

ROWS = "rows"
"""Name of the only axis of the mesh; what is summed over all rows of a batch is summed over it with `psum`."""


_meant: list[Mesh] = []
"""The mesh that programs are made for, where that is not the one of this machine."""


def data_mesh() -> Mesh:
    """The local devices, on one axis; inside `mesh_of` the devices that it is given."""
    return _meant[-1] if _meant else _local_mesh()


@cache
def _local_mesh() -> Mesh:
    return Mesh(np.asarray(jax.local_devices()), (ROWS,))


@contextmanager
def mesh_of(devices: Sequence[Any], fsdp: int) -> Iterator[None]:
    """Programs that are lowered inside are made for these devices, which need not be there."""
    _meant.append(Mesh(np.asarray(devices), (ROWS,)))
    try:
        yield
    finally:
        _meant.pop()


def replicated_sharding() -> NamedSharding:
    """Where an array lies that every device has whole."""
    return NamedSharding(data_mesh(), PartitionSpec())


def replicated(tree: Tree) -> Tree:
    """The arrays of a pytree on every device; what lies there already is not moved.

    On one device nothing is moved at all, but it is said that they lie there like what a step returns: a program is
    compiled once more for arrays of which something else is said.
    """
    return jax.device_put(tree, replicated_sharding())


def by_rows(function: Callable[..., Any], shared: Any, rows: Any, *, summed: bool = False) -> Any:
    """Applies `function(shared, rows)` on every device to its share of the rows.

    Args:
      function: maps the two pytrees to a pytree of arrays.
      shared: arrays that all devices have whole.
      rows: arrays `B×…`.
      summed: whether the function returns the same on all devices, having taken sums over `ROWS`.

    Returns:
      What the function returns, `B×…` again; or as it is where `summed`.
    """
    mesh = data_mesh()
    out = PartitionSpec() if summed else PartitionSpec(ROWS)
    # Values are known to be the same on all devices where they are said to be: sums make them so.
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec(ROWS)), out_specs=out, check_vma=False
    )
    return mapped(shared, rows)
