"""Attention and rotary positions: the one place a platform's own kernel would be swapped in.

Shapes: `B` batch, `T` queries, `S` keys, `H` query heads, `G` key-value heads, `d` head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def rotary_angles(positions: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosines and sines `B×T×d/2` of the rotary angles at `positions` `B×T` (Su et al. 2021, equation 15)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Array, angles: tuple[Array, Array]) -> Array:
    """Rotates `x` `B×T×heads×d`; the pairs are (i, i + d/2), the layout of Hugging Face checkpoints."""
    cos, sin = (part[:, :, None, :] for part in angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(query: Array, key: Array, value: Array, query_positions: Array, key_positions: Array) -> Array:
    """Causal grouped-query attention by position.

    Args:
      query: `B×T×H×d`.
      key: `B×S×G×d`, G dividing H.
      value: `B×S×G×d`.
      query_positions: `B×T` positions in the sequence.
      key_positions: `B×S`; a negative position marks a slot that holds nothing.

    Returns:
      `B×T×H×d`. The softmax is taken in float32. A query that may see no key (padding) gets their mean,
      which is finite and never read.
    """
    batch, length, heads, width = query.shape
    groups = key.shape[2]
    grouped = query.reshape(batch, length, groups, heads // groups, width)
    scores = jnp.einsum("btghd,bsgd->bghts", grouped, key, preferred_element_type=jnp.float32) * width**-0.5
    visible = (key_positions[:, None, :] >= 0) & (key_positions[:, None, :] <= query_positions[:, :, None])
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bghts,bsgd->btghd", weights, value).reshape(batch, length, heads, width)
