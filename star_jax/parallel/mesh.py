"""The devices as a mesh: each takes its share of a batch's rows, and the model whole or the part that is its own.

Rows are split over all devices, whatever the mesh, in the order of the devices: a device has the same rows on every
mesh of the same size.

Shapes: `B` rows of a batch, a multiple of the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.parallel.parts import marked
from star_jax.parallel.placement import DATA, FSDP, spec_of, specs_of

Tree = TypeVar("Tree")

ROWS = (DATA, FSDP)
"""The axes that rows are split over: what is summed over all rows of a batch is summed over both with `psum`."""

BY_ROWS, ALIKE = PartitionSpec(ROWS), PartitionSpec()
"""Where results lie: each row's on its device, or the same on all."""

_meshes: list[Mesh] = []
"""The mesh that is used, once one is."""


def data_mesh() -> Mesh:
    """The mesh; until `use_mesh` says something else, every device has the whole model."""
    if not _meshes:
        use_mesh(1)
    return _meshes[0]


def use_mesh(fsdp: int) -> Mesh:
    """Takes all devices, so many of which share a model.

    Programs that were made for another mesh are forgotten; arrays are moved when they are used next.

    Raises:
      ValueError: the number of devices is no multiple of `fsdp`.
    """
    devices = jax.devices()
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"{len(devices)} devices cannot share models by {fsdp}")
    mesh = Mesh(np.asarray(devices).reshape(-1, fsdp), ROWS)
    if _meshes and _meshes[0] != mesh:
        jax.clear_caches()
    _meshes[:] = [mesh]
    return mesh


@contextmanager
def mesh_of(devices: Sequence[Any], fsdp: int) -> Iterator[None]:
    """Programs that are lowered inside are made for these devices, which need not be there; `fsdp` share a model.

    Programs that were made for another mesh are forgotten.
    """
    before, mesh = list(_meshes), Mesh(np.asarray(devices).reshape(-1, fsdp), ROWS)
    if before != [mesh]:
        jax.clear_caches()
    _meshes[:] = [mesh]
    try:
        yield
    finally:
        if before != [mesh]:
            jax.clear_caches()
        _meshes[:] = before


def parts_of_a_model() -> int:
    """Devices that share a model."""
    return int(data_mesh().shape[FSDP])


def replicated_sharding() -> NamedSharding:
    """Where an array lies that every device has whole."""
    return NamedSharding(data_mesh(), ALIKE)


def parameter_sharding(name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Where a parameter such as `layers.q_proj.kernel` lies."""
    return NamedSharding(data_mesh(), spec_of(name.split("."), shape, parts_of_a_model()))


def replicated(tree: Tree) -> Tree:
    """The arrays of a pytree whole on every device; what lies there already is not moved.

    On one device nothing is moved at all, but it is said that they lie there like what a step returns: a program is
    compiled once more for arrays of which something else is said.
    """
    return jax.device_put(tree, replicated_sharding())


def placed(tree: Tree) -> Tree:
    """As `replicated`, but parameters that are split lie in parts (`parallel.placement`)."""
    return jax.device_put(tree, shardings(tree))


def shardings(tree: Any) -> Any:
    """Where `placed` puts the arrays of a pytree, or those that shapes stand for."""
    mesh = data_mesh()
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), parameter_specs(tree))


def parameter_specs(tree: Any) -> Any:
    """The same for `out` of `by_rows`."""
    return specs_of(tree, parts_of_a_model())


def gathered(tree: Tree) -> Tree:
    """Inside of a program that is not `by_rows`: the arrays whole on every device."""
    return tree if parts_of_a_model() == 1 else jax.lax.with_sharding_constraint(tree, replicated_sharding())


def held(tree: Tree) -> Tree:
    """Inside of a program that is not `by_rows`: the arrays as `placed` puts them."""
    return tree if parts_of_a_model() == 1 else jax.lax.with_sharding_constraint(tree, shardings(tree))


def in_place(function: Callable[[Any], Any], tree: Any, out: Any) -> Any:
    """`function(tree)` on every device, of the parts of parameters that lie there; results lie as `out` says."""
    if parts_of_a_model() == 1:
        return function(tree)
    specs = parameter_specs(tree)
    return jax.shard_map(function, mesh=data_mesh(), in_specs=(specs,), out_specs=out, check_vma=False)(tree)


def by_rows(function: Callable[..., Any], shared: Any, rows: Any, *, out: Any = BY_ROWS) -> Any:
    """Applies `function(shared, rows)` on every device to its share of the rows.

    Args:
      function: maps the two pytrees to a pytree of arrays; parameters that are split are `Part`s to it.
      shared: arrays that all devices have whole, and parameters.
      rows: arrays `B×…`.
      out: where results lie, of each leaf or of several: `BY_ROWS`; `ALIKE` for what is made of what is shared, or
        summed over `ROWS`; or as parameters do (`parameter_specs`).

    Returns:
      What the function returns, `B×…` again, or as `out` says.
    """
    mesh, specs, split = data_mesh(), parameter_specs(shared), parts_of_a_model() > 1

    def here(shared: Any, rows: Any) -> Any:
        return function(marked(shared, specs) if split else shared, rows)

    # Values are known to be the same on all devices where they are said to be: sums make them so.
    mapped = jax.shard_map(here, mesh=mesh, in_specs=(specs, BY_ROWS), out_specs=out, check_vma=False)
    return mapped(shared, rows)
