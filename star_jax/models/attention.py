"""Attention: the one place a platform's own kernel would be swapped in.

Shapes: `B` batch, `T` queries, `S` keys, `H` query heads, `G` key-value heads, `d` head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    query_positions: Array,
    key_positions: Array,
    *,
    scale: float | None = None,
    window: Array | None = None,
    softcap: float | None = None,
) -> Array:
    """Causal grouped-query attention by position.

    Args:
      query: `B×T×H×d`.
      key: `B×S×G×d`, G dividing H.
      value: `B×S×G×d`.
      query_positions: `B×T` positions in the sequence.
      key_positions: `B×S`; a negative position marks a slot that holds nothing.
      scale: multiplies the products; None for 1 / √d.
      window: scalar, the most recent positions a query sees, its own included; None for all of them.
      softcap: c in c · tanh(product / c), as in Gemma 2 (arXiv 2408.00118, section 2); None for none.

    Returns:
      `B×T×H×d`. The softmax is taken in float32. A query that may see no key (padding) gets their mean,
      which is finite and never read.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum("btghd,bsgd->bghts", grouped, key, preferred_element_type=jnp.float32)
    scores = scores * (width**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = (key_positions[:, None, :] >= 0) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bghts,bsgd->btghd", weights, value).reshape(batch, length, heads, width)
