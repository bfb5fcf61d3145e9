"""Attention of rows that branch, and of rows behind a beginning that all of them share, in plain XLA.

What a query sees in its own row and what it sees of the shared beginning are two softmaxes, combined by the logarithms
of their sums: the beginning is one matrix for all rows, and no row keeps a copy of it.

Shapes: `B` batch, `T` places of a row, `M` slots of a packed batch, `P` tokens of the beginning, `H` query heads,
`G` key-value heads, `d` head width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.ops.attention import AttentionOptions
from star_jax.ops.attention_xla import MASKED, by_group, by_token, query_blocks, weigh
from star_jax.ops.packing import Branches, Packing, pack_rows, unpack_rows

Array = jax.Array


SCORES_AT_ONCE = 1 << 24
"""Scores of the shared beginning that are held at once, 64 MiB of float32; more queries are taken in blocks."""


class SharedKeys(NamedTuple):
    """Keys and values of a beginning that all rows share, rotated to their positions, from 0 on.

    Attributes:
      keys: `G×P×d`.
      values: `G×P×d`.
    """

    keys: Array
    values: Array


class Part(NamedTuple):
    """What some of a query's keys give it.

    Attributes:
      mixed: `…×H×d` mean of their values by the softmax of their scores.
      log_total: `…×H` log Σ exp of their scores, float32.
    """

    mixed: Array
    log_total: Array


def branching_attention(
    query: Array,
    key: Array,
    value: Array,
    packing: Packing,
    options: AttentionOptions,
    shared: SharedKeys | None = None,
) -> Array:
    """Attention within the rows of a packed batch that branch, and to what stands before all of them.

    Args:
      query: `M×H×d`.
      key: `M×G×d`, G dividing H.
      value: `M×G×d`.
      packing: with branches.
      options: scale, window and cap; a window goes by positions.
      shared: what stands before every row; None for nothing.

    Returns:
      `M×H×d`; finite behind the last row, where it means nothing.

    Raises:
      ValueError: the rows have no branches.
    """
    if packing.branches is None:
        raise ValueError("rows of this packing do not branch")
    in_rows = [unpack_rows(x, packing) for x in (query, key, value)]
    rows = attend_branches(in_rows[0], in_rows[1], in_rows[2], packing.branches, options)
    mixed = pack_rows(rows.mixed, packing)
    if shared is None:
        return mixed
    own = Part(mixed, pack_rows(rows.log_total, packing))
    return combined(own, attend_shared(query, shared, packing.positions, options)).astype(query.dtype)


def attend_branches(query: Array, key: Array, value: Array, branches: Branches, options: AttentionOptions) -> Part:
    """Attention of `B×T×H×d` to `B×T×G×d` in rows that branch; a place sees itself and what it continues."""
    places, scale = jnp.arange(query.shape[1]), options.scale_for(query.shape[-1])
    groups, keys, values = by_group(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    parts = []
    for first, last in query_blocks(query.shape[1]):
        near, far = slice(first, last), slice(last)
        at = places[near, None]
        visible = (places[far] <= at) & (at < branches.ends[:, None, far])
        if options.window is not None:
            visible &= branches.positions[:, near, None] - branches.positions[:, None, far] < options.window
        hidden = jnp.where(visible, 0.0, MASKED).astype(jnp.float32)[:, None, None]
        seen = (groups[:, :, :, near], keys[:, :, far], values[:, :, far])
        parts.append(weigh(*seen, hidden, scale, options.softcap))
    mixed, log_total = (by_token(jnp.concatenate(leaves, axis=3)) for leaves in zip(*parts, strict=True))
    return Part(mixed, log_total[..., 0])


def attend_shared(query: Array, shared: SharedKeys, positions: Array, options: AttentionOptions) -> Part:
    """Attention of queries `M×H×d` to the shared beginning, at `positions` `M` counted from its end."""
    slots, heads = query.shape[:2]
    block = max(1, SCORES_AT_ONCE // (heads * shared.keys.shape[1]))
    if slots <= block:
        return _attend_shared(query, shared, positions, options)
    count = -(-slots // block)
    more = count * block - slots
    queries = jnp.pad(query, ((0, more), (0, 0), (0, 0))).reshape(count, block, *query.shape[1:])
    places = jnp.pad(positions, (0, more)).reshape(count, block)
    found = jax.lax.map(lambda part: _attend_shared(part[0], shared, part[1], options), (queries, places))
    return Part(*(leaf.reshape(count * block, *leaf.shape[2:])[:slots] for leaf in found))


def _attend_shared(query: Array, shared: SharedKeys, positions: Array, options: AttentionOptions) -> Part:
    length = shared.keys.shape[1]
    hidden = jnp.zeros((), jnp.float32)
    if options.window is not None:
        distance = positions[:, None] + length - jnp.arange(length)
        hidden = jnp.where(distance < options.window, 0.0, MASKED).astype(jnp.float32)
    groups = by_group(query[None], shared.keys.shape[0])
    scale = options.scale_for(query.shape[-1])
    found = weigh(groups, shared.keys[None], shared.values[None], hidden, scale, options.softcap)
    mixed, log_total = (by_token(part)[0] for part in found)
    return Part(mixed, log_total[..., 0])


def combined(one: Part, other: Part) -> Array:
    """Float32 mean `…×H×d` over the keys of both parts."""
    share = jax.nn.sigmoid(one.log_total - other.log_total)[..., None]
    return share * one.mixed.astype(jnp.float32) + (1 - share) * other.mixed.astype(jnp.float32)
