"""Parameters of which a device has a part: how the program of one device reads them.

Two ways. A pass over whole rows gathers a kernel when its layer comes, and forgets it again: there are many tokens for
every weight. Decoding, which has few, leaves the kernels where they lie: the devices that share a model put their rows
together, each multiplies all of them with its own part, and the results go back to whose rows they are.

Shapes: `B` rows of a device, `n` devices that share a model, `I` and `O` input and output width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec

from star_jax.parallel.placement import DATA, FSDP

Array = jax.Array
Tree = TypeVar("Tree")


@struct.dataclass
class Part:
    """A device's part of an array.

    Attributes:
      here: the part.
      axis: that the whole is split along, counted from the end, so that a layer can be taken out of a stack.
      stays: whether rows come to it; or else it is gathered.
    """

    here: Array
    axis: int = struct.field(pytree_node=False)
    stays: bool = struct.field(pytree_node=False, default=False)


def is_part(leaf: Any) -> bool:
    """Whether this is a part."""
    return isinstance(leaf, Part)


def split_axis_of(spec: PartitionSpec) -> int | None:
    """The axis that is split over the devices that share a model, counted from the end."""
    return tuple(spec).index(FSDP) - len(spec) if FSDP in tuple(spec) else None


def marked(tree: Any, specs: Any) -> Any:
    """The tree with a `Part` where its `PartitionSpec` splits an array over the devices that share a model."""

    def of(leaf: Any, spec: PartitionSpec) -> Any:
        axis = split_axis_of(spec)
        return leaf if axis is None else Part(leaf, axis)

    return jax.tree.map(of, tree, specs)


def in_parts(tree: Any) -> bool:
    """Whether something in it is a part."""
    return any(is_part(leaf) for leaf in jax.tree.leaves(tree, is_leaf=is_part))


def whole(tree: Any) -> Any:
    """The tree with its parts gathered.

    Its gradient is summed over all devices, those with other rows of the same part included, so that sums are rounded
    alike on every mesh of the same size; each device keeps its part of it.
    """
    return jax.tree.map(lambda leaf: _gathered(leaf.axis, leaf.here) if is_part(leaf) else leaf, tree, is_leaf=is_part)


def multiplied(function: Callable[..., Array], weights: Any, x: Array, *rest: Any) -> Array:
    """`function(weights, x, *rest)`, `B×…×O`, whose weights may be parts, split along the output where they stay.

    What is gathered is gathered again in a backward pass, so that no whole kernel is kept for it.
    """
    if not in_parts(weights):
        return function(weights, x, *rest)
    if stays(weights):
        return to_own_rows(function(here(weights), all_rows(x), *rest))
    return jax.checkpoint(lambda weights, x, *rest: function(whole(weights), x, *rest))(weights, x, *rest)


def staying(tree: Tree) -> Tree:
    """The tree for many small steps: what is split along its output stays where it lies, the rest is gathered now."""

    def of(leaf: Any) -> Any:
        if not is_part(leaf):
            return leaf
        return leaf.replace(stays=True) if leaf.axis == -1 else whole(leaf)

    found: Tree = jax.tree.map(of, tree, is_leaf=is_part)
    return found


def stays(tree: Any) -> bool:
    """Whether rows come to the parts in it."""
    return any(is_part(leaf) and leaf.stays for leaf in jax.tree.leaves(tree, is_leaf=is_part))


def here(tree: Any) -> Any:
    """The tree with what lies on this device in place of its parts."""
    return jax.tree.map(lambda leaf: leaf.here if is_part(leaf) else leaf, tree, is_leaf=is_part)


def all_rows(x: Array) -> Array:
    """The rows `n·B×…` of all devices that share a model, from this one's `B×…`."""
    return jax.lax.all_gather(x, FSDP, axis=0, tiled=True)


def own_rows(x: Array) -> Array:
    """This device's `B×…` of the rows `n·B×…` of all that share a model."""
    return own_part(x, -x.ndim)


def all_outputs(y: Array) -> Array:
    """All outputs `…×O`, from the part `…×O/n` that this device has made of the same rows as the others."""
    return jax.lax.all_gather(y, FSDP, axis=y.ndim - 1, tiled=True)


def to_own_rows(y: Array) -> Array:
    """All outputs `B×…×O` of this device's rows, from its part `n·B×…×O/n` of the outputs of all rows."""
    return jax.lax.all_to_all(y, FSDP, split_axis=0, concat_axis=y.ndim - 1, tiled=True)


def anywhere(flag: Array, weights: Any) -> Array:
    """Whether a scalar bool is true on any of the devices that work on rows together: so many steps they all take."""
    return jax.lax.pmax(flag.astype(jnp.int32), FSDP) > 0 if in_parts(weights) else flag


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered(axis: int, part: Array) -> Array:
    # Along an axis of its own, and then put in place: a GPU gathers along the first axis in memory only, and would lay
    # out the kernels of all layers anew, in a second copy, so that another one is the first.
    parts, place = jax.lax.all_gather(part, FSDP), part.ndim + axis
    return jnp.moveaxis(parts, 0, place).reshape(*part.shape[:place], -1, *part.shape[place + 1 :])


def _gathered_forward(axis: int, part: Array) -> tuple[Array, None]:
    return _gathered(axis, part), None


def _gathered_backward(axis: int, _: None, slope: Array) -> tuple[Array]:
    return (own_part(jax.lax.psum(slope, (DATA, FSDP)), axis),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def own_parts(tree: Any, specs: Any) -> Any:
    """Of a tree that this device has whole, what lies here, as `specs` say of the tree or of stacks of such trees."""

    def of(leaf: Array, spec: PartitionSpec) -> Array:
        axis = split_axis_of(spec)
        return leaf if axis is None else own_part(leaf, axis)

    return jax.tree.map(of, tree, specs)


def own_part(array: Array, axis: int) -> Array:
    """This device's part of an array that it has whole; the axis is counted from the end."""
    size = array.shape[axis] // jax.lax.axis_size(FSDP)
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index(FSDP) * size, size, array.ndim + axis)


def summed(tree: Any) -> Any:
    """Sums over all rows of what each device has of its own; gradients of parts are sums already."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_part)
    sums = iter(jax.lax.psum([leaf for leaf in leaves if not is_part(leaf)], (DATA, FSDP)))
    return jax.tree.unflatten(structure, [leaf.here if is_part(leaf) else next(sums) for leaf in leaves])
