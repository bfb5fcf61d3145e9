"""Attention: one function for whole sequences, whatever the platform, and one for queries into a cache.

A whole sequence goes to the kernel its platform is quickest with (`choose_implementation`, `ops.attention_kernels`);
a few queries against a cache are plain XLA everywhere.

Shapes: `B` batch, `T` queries, `S` keys, `H` query heads, `G` key-value heads, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.ops.attention_kernels import IMPLEMENTATIONS, AttentionImplementation, choose_implementation
from star_jax.ops.attention_xla import MASKED, Constants, Inputs, by_group, by_token, causal_attention, weigh
from star_jax.ops.platform import at_least_two_rows

Array = jax.Array


class AttentionOptions(NamedTuple):
    """What attention scores are made of besides query and key.

    Attributes:
      scale: multiplies the products; None for 1 / √d.
      window: the most recent positions a query sees, its own included, at least 1; None for all. A scalar array is
        for a scan over layers that differ.
      softcap: c in c · tanh(product / c), as in Gemma 2 (arXiv 2408.00118, section 2); None for none.
    """

    scale: float | None = None
    window: int | Array | None = None
    softcap: float | None = None

    def scale_for(self, head_dim: int) -> float:
        """The scale of heads of that width."""
        return head_dim**-0.5 if self.scale is None else self.scale


class PackedRows(NamedTuple):
    """Where the rows of a packed batch lie (`ops.packing`).

    Attributes:
      starts: `B` first slot of each row; the rows lie one behind another.
      lengths: `B` tokens of each row.
      width: tokens of the longest row that there may be; known when it is compiled.
    """

    starts: Array
    lengths: Array
    width: int


def self_attention(
    query: Array,
    key: Array,
    value: Array,
    options: AttentionOptions = AttentionOptions(),  # noqa: B008 (a named tuple of constants)
    *,
    windows: Sequence[int | None] = (),
    kernel: AttentionImplementation | None = None,
) -> Array:
    """Causal grouped-query attention within whole rows, padded on the right or not at all.

    No mask of the padding is needed: it lies behind every real token, where causal attention never looks. Rows of
    padding come out finite and mean nothing.

    Under `vmap`, cuDNN sees the mapped axis as part of the batch where query, key and value all carry it, and carry it
    first; JAX raises an error where they do not.

    Args:
      query: `B×T×H×d`.
      key: `B×T×G×d`, G dividing H.
      value: `B×T×G×d`.
      options: scale, window and cap.
      windows: what an array `window` can be; None is any number from T up. A kernel that is compiled for its window
        takes any other for the next larger one, and unlike XLA cannot tell.
      kernel: None for `choose_implementation`'s.

    Returns:
      `B×T×H×d`. The softmax is taken in float32.

    Raises:
      ValueError: `window` is a number below 1; or an array without `windows`, to a kernel that needs to know it when
        it is compiled.
    """
    window, softcap, scale = options.window, options.softcap, options.scale_for(query.shape[-1])
    _require_window(window)
    if kernel is None:
        kernel = choose_implementation(query.dtype, query.shape[-1], softcap=softcap).kernel
    if kernel == "xla":
        return causal_attention(Constants(scale, softcap, None), Inputs(query, key, value, window, None, None))
    run = partial(IMPLEMENTATIONS[kernel], scale=scale, softcap=softcap)
    length = query.shape[1]
    if not isinstance(window, jax.Array):
        return run(query, key, value, window=None if window is None or window >= length else window)
    if not windows:
        raise ValueError(f"the {kernel} kernel is compiled for its window: pass the windows that there are")
    sizes = sorted({length if size is None else min(size, length) for size in windows})
    branches = [partial(run, window=None if size == length else size) for size in sizes]
    which = jnp.searchsorted(jnp.asarray(sizes), jnp.minimum(window, length))
    return jax.lax.switch(which, branches, query, key, value)


def packed_attention(
    query: Array,
    key: Array,
    value: Array,
    rows: PackedRows,
    options: AttentionOptions = AttentionOptions(),  # noqa: B008 (a named tuple of constants)
) -> Array:
    """Causal grouped-query attention within the rows of a packed batch of M slots (`ops.packing`), in XLA.

    A row takes the time of its own length, rounded up to a multiple of `ROW_STEP`, or of a `MOST_LENGTHS`th of `width`
    where that is more; and that of a copy of `width` slots.

    Args:
      query: `M×H×d`.
      key: `M×G×d`, G dividing H.
      value: `M×G×d`.
      rows: where they lie.
      options: scale, window and cap.

    Returns:
      `M×H×d`; 0 behind the last row.

    Raises:
      ValueError: `window` is a number below 1.
    """
    _require_window(options.window)
    constants = Constants(options.scale_for(query.shape[-1]), options.softcap, rows.width)
    return causal_attention(constants, Inputs(query, key, value, options.window, rows.starts, rows.lengths))


def attend_cache(
    query: Array,
    keys: Array,
    values: Array,
    query_positions: Array,
    key_positions: Array,
    options: AttentionOptions = AttentionOptions(),  # noqa: B008 (a named tuple of constants)
) -> Array:
    """Causal grouped-query attention by position, of queries to the slots of a cache.

    Args:
      query: `B×T×H×d`.
      keys: `B×G×S×d`, G dividing H. A head's slots lie together, so that none is moved before the product.
      values: `B×G×S×d`.
      query_positions: `B×T` positions in the sequence.
      key_positions: `B×S`; a negative position marks a slot that holds nothing.
      options: scale, window and cap.

    Returns:
      `B×T×H×d`. The softmax is taken in float32. A query that may see no key (padding) gets their mean,
      which is finite and never read.

    Raises:
      ValueError: `window` is a number below 1.
    """
    window = options.window
    _require_window(window)
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = (key_positions[:, None, :] >= 0) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    hidden = jnp.where(visible, 0.0, MASKED).astype(jnp.float32)[:, None, None]
    heads = by_group(query, keys.shape[1])
    lone = heads.shape[2] * heads.shape[3] == 1
    rows = at_least_two_rows(heads, axis=2) if lone else heads
    mixed, _ = weigh(rows, keys, values, hidden, options.scale_for(query.shape[-1]), options.softcap)
    return by_token(mixed[:, :, :1] if lone else mixed)


def _require_window(window: int | Array | None) -> None:
    if window is not None and not isinstance(window, jax.Array) and window < 1:
        raise ValueError(f"window is {window}; a query sees at least 1 position, its own")
