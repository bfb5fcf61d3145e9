"""Rows without their padding: the real tokens of a batch packed in one line, for everything a token goes through alone.

Projections, norms and activations are most of a pass and see every token by itself, so padding has no business there.
Attention alone needs rows. What lies between the two forms is a copy, forwards and backwards; XLA's own gradient of it,
a scatter, would take a CPU longer than the product it is for.

Shapes: `B` rows, `T` places of a row, `M` slots of it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Branches(NamedTuple):
    """How rows branch: each has a trunk, and behind it several continuations that share their first tokens, as a tree.

    The tokens of the tree stand in depth-first order, so that what follows a token lies in one piece behind it.

    Attributes:
      positions: `B×T` position of each place in the text that it belongs to, from 0.
      ends: `B×T` the place behind the last that sees this one: where the part of the tree that begins here ends; for
        the trunk the row's length.
    """

    positions: Array
    ends: Array


class Packing(NamedTuple):
    """Where the tokens of right-padded rows stand in a line of M slots, row after row.

    Attributes:
      rows: `M` the row of each slot.
      places: `M` its place in the row.
      positions: `M` its position in the text; another than its place where rows branch.
      filled: `M` bool, False behind the last token.
      packed_index: `B×T` the slot of each place; for padding any slot.
      real: `B×T` bool, False at padding.
      starts: `B` first slot of each row.
      lengths: `B` tokens of each row.
      fits: `B` bool, False for rows that reach beyond it: they come back as NaN.
      branches: of the rows, where they branch.
    """

    rows: Array
    places: Array
    positions: Array
    filled: Array
    packed_index: Array
    real: Array
    starts: Array
    lengths: Array
    fits: Array
    branches: Branches | None = None


def make_packing(lengths: Array, width: int, capacity: int, branches: Branches | None = None) -> Packing:
    """The packing of rows of `lengths` `B`, padded to T = `width`; M = `capacity`, at least the sum of the lengths."""
    ends = jnp.cumsum(lengths)
    numbers, places = jnp.arange(capacity), jnp.arange(width)[None]
    rows = jnp.minimum(jnp.searchsorted(ends, numbers, side="right"), lengths.shape[0] - 1)
    starts = ends - lengths
    filled = numbers < ends[-1]
    inside = jnp.where(filled, numbers - starts[rows], 0)
    positions = inside if branches is None else jnp.where(filled, branches.positions[rows, inside], 0)
    real = places < lengths[:, None]
    slot = jnp.where(real, starts[:, None] + places, 0)
    return Packing(rows, inside, positions, filled, slot, real, starts, lengths, ends <= capacity, branches)


@jax.custom_vjp
def pack_rows(x: Array, packing: Packing) -> Array:
    """`B×T×…` as `M×…`; 0 in slots that hold nothing."""
    return jnp.where(_wide(packing.filled, x.ndim - 2), x[packing.rows, packing.places], 0)


@jax.custom_vjp
def unpack_rows(x: Array, packing: Packing) -> Array:
    """`M×…` as `B×T×…`, floating; 0 at padding, and NaN all over a row for which the capacity was too small."""
    fits, axes = packing.fits[:, None], x.ndim - 1
    empty = jnp.where(fits, 0, jnp.nan).astype(x.dtype)
    return jnp.where(_wide(packing.real & fits, axes), x[packing.packed_index], _wide(empty, axes))


def _wide(values: Array, axes: int) -> Array:
    """The values with so many axes of one behind them."""
    return values.reshape(*values.shape, *(1,) * axes)


# Each place has one slot and each slot one place, so that the one copy is the other's transpose.
pack_rows.defvjp(
    lambda x, packing: (pack_rows(x, packing), packing), lambda packing, slope: (unpack_rows(slope, packing), None)
)
unpack_rows.defvjp(
    lambda x, packing: (unpack_rows(x, packing), packing), lambda packing, slope: (pack_rows(slope, packing), None)
)
