"""Which axis of a parameter is split over the devices that share a model: the one rule that all who place arrays ask.

Kernels are split along their output, whatever holds them: floats, 8 or 4 bits with their scales, experts, projections
that are one or several, adapters. So no sum is ever split: a device that has gathered a kernel, or that multiplies
with its own part of it, rounds as one that has it whole. It is also how a checkpoint lies in its file, output by
output, so that a part is a run of bytes there.

Shapes: `L` layers, `I` input width, `O` output width, `r` rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

DATA, FSDP = "data", "fsdp"
"""Axes of the mesh: devices along the first have the same parts, those along the second one part each."""

SPLIT_AXES = {"kernel": -1, "gate_up": -1, "down": -1, "a": -2, "b": -1}
"""Parameter of a layer -> axis that is split, counted from the end: kernels, those of experts, 8-bit and 4-bit ones
with their scales, all along their output; the factors of an adapter along the side that is not the rank. All others
are whole on every device: norms, biases, routers, embedding and head."""


def split_axis(names: Sequence[str], shape: Sequence[int], parts: int) -> int | None:
    """The axis of a leaf that is split, counted from the end; None where every device has it whole.

    Kernels are `…×I×O`, their scales `…×O`, and factors `L×I×r` and `L×r×O`.

    Args:
      names: of the way to it, such as `("layers", "q_proj", "kernel", "scale")`; what is before `layers` and what is
        behind the parameter does not matter, so that moments of an optimiser lie as what they are of.
      shape: of the whole leaf.
      parts: devices that share a model.
    """
    inside = list(names)[list(names).index("layers") :] if "layers" in names else []
    axis = next((SPLIT_AXES[name] for name in inside if name in SPLIT_AXES), None)
    if axis is None or parts == 1 or len(shape) < -axis or shape[axis] % parts or not shape[axis]:
        return None
    return axis


def spec_of(names: Sequence[str], shape: Sequence[int], parts: int) -> PartitionSpec:
    """The same as JAX says it."""
    axis = split_axis(names, shape, parts)
    if axis is None:
        return PartitionSpec()
    return PartitionSpec(*(FSDP if place == len(shape) + axis else None for place in range(len(shape))))


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names along the way to a leaf of a pytree, as `jax.tree_util` gives it."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def specs_of(tree: Any, parts: int) -> Any:
    """The tree with a `PartitionSpec` for each array; anything that has a shape counts as one."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: spec_of(names_of(path), leaf.shape, parts), tree)


def bytes_on_a_device(tree: Any, parts: int) -> int:
    """Bytes of a tree's arrays, or of their shapes, that each of `parts` devices holds."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        whole = leaf.size * leaf.dtype.itemsize
        total += whole if split_axis(names_of(path), leaf.shape, parts) is None else whole // parts
    return total
