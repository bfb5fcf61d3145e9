"""Rows without their padding: the real tokens of a batch in one line, for everything a token goes through alone.

Projections, norms and activations are most of a pass and see every token by itself, so padding has no business there.
Attention alone needs rows. What lies between the two forms is a copy, forwards and backwards; XLA's own gradient of it,
a scatter, would take a CPU longer than the product it is for.

Shapes: `B` rows, `T` places of a row, `M` slots of the line.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Line(NamedTuple):
    """Where the tokens of right-padded rows stand in a line of M slots, row after row.

    Attributes:
      rows: `M` the row of each slot.
      positions: `M` its position in the row.
      filled: `M` bool, False behind the last token.
      slots: `B×T` the slot of each place; for padding any slot.
      real: `B×T` bool, False at padding.
      starts: `B` first slot of each row.
      lengths: `B` tokens of each row.
    """

    rows: Array
    positions: Array
    filled: Array
    slots: Array
    real: Array
    starts: Array
    lengths: Array


def line_up(lengths: Array, width: int, slots: int) -> Line:
    """The line of rows of `lengths` `B`, padded to T = `width`; M = `slots`, at least the sum of the lengths."""
    ends = jnp.cumsum(lengths)
    numbers, places = jnp.arange(slots), jnp.arange(width)[None]
    rows = jnp.minimum(jnp.searchsorted(ends, numbers, side="right"), lengths.shape[0] - 1)
    starts = ends - lengths
    filled = numbers < ends[-1]
    positions = jnp.where(filled, numbers - starts[rows], 0)
    real = places < lengths[:, None]
    return Line(rows, positions, filled, jnp.where(real, starts[:, None] + places, 0), real, starts, lengths)


@jax.custom_vjp
def to_line(x: Array, line: Line) -> Array:
    """`B×T×…` as `M×…`; 0 in slots that hold nothing."""
    return _where(line.filled, x[line.rows, line.positions])


@jax.custom_vjp
def to_rows(x: Array, line: Line) -> Array:
    """`M×…` as `B×T×…`; 0 at padding."""
    return _where(line.real, x[line.slots])


def _where(keep: Array, x: Array) -> Array:
    return jnp.where(keep.reshape(*keep.shape, *(1,) * (x.ndim - keep.ndim)), x, 0)


# Each place has one slot and each slot one place, so that the one copy is the other's transpose.
to_line.defvjp(lambda x, line: (to_line(x, line), line), lambda line, slope: (to_rows(slope, line), None))
to_rows.defvjp(lambda x, line: (to_rows(x, line), line), lambda line, slope: (to_line(slope, line), None))
