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
      fits: `B` bool, False for rows that reach beyond the line: they come back as NaN.
    """

    rows: Array
    positions: Array
    filled: Array
    slots: Array
    real: Array
    starts: Array
    lengths: Array
    fits: Array


def line_up(lengths: Array, width: int, slots: int) -> Line:
    """The line of rows of `lengths` `B`, padded to T = `width`; M = `slots`, at least the sum of the lengths."""
    ends = jnp.cumsum(lengths)
    numbers, places = jnp.arange(slots), jnp.arange(width)[None]
    rows = jnp.minimum(jnp.searchsorted(ends, numbers, side="right"), lengths.shape[0] - 1)
    starts = ends - lengths
    filled = numbers < ends[-1]
    positions = jnp.where(filled, numbers - starts[rows], 0)
    real = places < lengths[:, None]
    slot = jnp.where(real, starts[:, None] + places, 0)
    return Line(rows, positions, filled, slot, real, starts, lengths, ends <= slots)


@jax.custom_vjp
def to_line(x: Array, line: Line) -> Array:
    """`B×T×…` as `M×…`; 0 in slots that hold nothing."""
    return jnp.where(_wide(line.filled, x.ndim - 2), x[line.rows, line.positions], 0)


@jax.custom_vjp
def to_rows(x: Array, line: Line) -> Array:
    """`M×…` as `B×T×…`, floating; 0 at padding, and NaN all over a row for which the line was too short."""
    fits, axes = line.fits[:, None], x.ndim - 1
    empty = jnp.where(fits, 0, jnp.nan).astype(x.dtype)
    return jnp.where(_wide(line.real & fits, axes), x[line.slots], _wide(empty, axes))


def _wide(values: Array, axes: int) -> Array:
    """The values with so many axes of one behind them."""
    return values.reshape(*values.shape, *(1,) * axes)


# Each place has one slot and each slot one place, so that the one copy is the other's transpose.
to_line.defvjp(lambda x, line: (to_line(x, line), line), lambda line, slope: (to_rows(slope, line), None))
to_rows.defvjp(lambda x, line: (to_rows(x, line), line), lambda line, slope: (to_line(slope, line), None))
