"""Attention: one function for whole sequences, whatever the platform, and one for queries into a cache.

A whole sequence goes to the kernel its platform is quickest with (`choose_kernel`, `models.attention_kernels`);
a few queries against a cache are plain XLA everywhere.

Shapes: `B` batch, `T` queries, `S` keys, `H` query heads, `G` key-value heads, `d` head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp

from star_jax.models.attention_kernels import KERNELS, Kernel, choose_kernel

Array = jax.Array

MASKED = -1e30
"""Added to the scores of hidden keys. A sum, unlike a select, stays in one loop with the product on a CPU."""

QUERY_BLOCK = 128
"""Queries of a whole sequence that are scored at once, against the keys up to the last of them."""

MOST_BLOCKS = 8
"""Blocks at most, for each is written out in the program."""


def self_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float | None = None,
    window: int | Array | None = None,
    windows: Sequence[int | None] = (),
    softcap: float | None = None,
    kernel: Kernel | None = None,
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
      scale: multiplies the products; None for 1 / √d.
      window: the most recent positions a query sees, its own included; None for all. A scalar array is for a scan
        over layers that differ, and has to be one of `windows`.
      windows: what an array `window` can be; None is any number from T up.
      softcap: c in c · tanh(product / c), as in Gemma 2 (arXiv 2408.00118, section 2); None for none.
      kernel: None for `choose_kernel`'s.

    Returns:
      `B×T×H×d`. The softmax is taken in float32.

    Raises:
      ValueError: an array `window` without `windows`, to a kernel that needs to know it when it is compiled.
    """
    if kernel is None:
        kernel = choose_kernel(query.dtype, query.shape[-1], softcap=softcap).kernel
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if kernel == "xla":
        return _causal(query, key, value, scale, window, softcap)
    run = partial(KERNELS[kernel], scale=scale, softcap=softcap)
    length = query.shape[1]
    if not isinstance(window, jax.Array):
        return run(query, key, value, window=None if window is None or window >= length else window)
    if not windows:
        raise ValueError(f"the {kernel} kernel is compiled for its window: pass the windows that there are")
    sizes = sorted({length if size is None else min(size, length) for size in windows})
    branches = [partial(run, window=None if size == length else size) for size in sizes]
    which = jnp.searchsorted(jnp.asarray(sizes), jnp.minimum(window, length))
    return jax.lax.switch(which, branches, query, key, value)


def attend(
    query: Array,
    key: Array,
    value: Array,
    query_positions: Array,
    key_positions: Array,
    *,
    scale: float | None = None,
    window: int | Array | None = None,
    softcap: float | None = None,
) -> Array:
    """Causal grouped-query attention by position, as `attend_cache` with keys and values of `B×S×G×d`."""
    return attend_cache(
        query,
        key.swapaxes(1, 2),
        value.swapaxes(1, 2),
        query_positions,
        key_positions,
        scale=scale,
        window=window,
        softcap=softcap,
    )


def attend_cache(
    query: Array,
    keys: Array,
    values: Array,
    query_positions: Array,
    key_positions: Array,
    *,
    scale: float | None = None,
    window: int | Array | None = None,
    softcap: float | None = None,
) -> Array:
    """Causal grouped-query attention by position, of queries to the slots of a cache.

    Args:
      query: `B×T×H×d`.
      keys: `B×G×S×d`, G dividing H. A head's slots lie together, so that none is moved before the product.
      values: `B×G×S×d`.
      query_positions: `B×T` positions in the sequence.
      key_positions: `B×S`; a negative position marks a slot that holds nothing.
      scale: multiplies the products; None for 1 / √d.
      window: the most recent positions a query sees, its own included; None for all of them.
      softcap: c in c · tanh(product / c), as in Gemma 2 (arXiv 2408.00118, section 2); None for none.

    Returns:
      `B×T×H×d`. The softmax is taken in float32. A query that may see no key (padding) gets their mean,
      which is finite and never read.
    """
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    visible = (key_positions[:, None, :] >= 0) & (distance >= 0)
    if window is not None:
        visible &= distance < window
    hidden = jnp.where(visible, 0.0, MASKED).astype(jnp.float32)[:, None, None]
    heads = _by_group(query, keys.shape[1])
    # A product of one narrow row is not taken by the CPU's fast kernels; one of two rows is, several times as quick.
    lone = heads.shape[2] * heads.shape[3] == 1 and query.dtype != jnp.float32
    if lone:
        heads = jnp.broadcast_to(heads, (*heads.shape[:2], 2, *heads.shape[3:]))
    mixed = _weigh(heads, keys, values, hidden, query.shape[-1] ** -0.5 if scale is None else scale, softcap)
    return _by_token(mixed[:, :, :1] if lone else mixed)


@partial(jax.checkpoint, static_argnums=(3, 5))
def _causal(
    query: Array, key: Array, value: Array, scale: float, window: int | Array | None, softcap: float | None
) -> Array:
    """`self_attention` in XLA. The backward pass computes the `T×T` weights anew, as quick as to keep and read them."""
    length = query.shape[1]
    query, key, value = _by_group(query, key.shape[2]), key.swapaxes(1, 2), value.swapaxes(1, 2)
    count = min(-(-length // QUERY_BLOCK), MOST_BLOCKS)
    edges = [length * number // count for number in range(count + 1)]
    parts = []
    for first, last in pairwise(edges):
        distance = jnp.arange(first, last)[:, None] - jnp.arange(last)[None]
        visible = distance >= 0
        if window is not None:
            visible &= distance < window
        hidden = jnp.where(visible, 0.0, MASKED).astype(jnp.float32)
        block = query[:, :, :, first:last]
        parts.append(_weigh(block, key[:, :, :last], value[:, :, :last], hidden, scale, softcap))
    return _by_token(jnp.concatenate(parts, axis=3))


def _weigh(query: Array, key: Array, value: Array, hidden: Array, scale: float, softcap: float | None) -> Array:
    """Means `B×G×H/G×T×d` of the values by the softmax of the scores; `hidden` is added to the scores."""
    scores = jnp.einsum("bghtd,bgsd->bghts", query, key, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores, scale = softcap * jnp.tanh(scores * (scale / softcap)), 1.0
    scores = scores + hidden
    # Scaled last, for the product, the mask and the maximum are then one loop on a CPU, and rounded nowhere; divided
    # after the product with the values, which is smaller. The largest score cancels, and so has no gradient.
    weights = jnp.exp(scale * (scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum("bghts,bgsd->bghtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (mixed / total).astype(value.dtype)


def _by_group(query: Array, groups: int) -> Array:
    """`B×T×H×d` as `B×G×H/G×T×d`."""
    batch, length, heads, width = query.shape
    return query.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def _by_token(mixed: Array) -> Array:
    """`B×G×H/G×T×d` as `B×T×H×d`."""
    batch, groups, heads, length, width = mixed.shape
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * heads, width)
