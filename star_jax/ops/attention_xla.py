"""Attention in plain XLA, forwards and backwards: blocks of queries against the keys up to them, row after row.

Shapes: `B` batch, `T` queries, `S` keys, `H` query heads, `G` key-value heads, `d` head width,
`M` slots of a packed batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

MASKED = -1e30
"""Added to the scores of hidden keys. A sum, unlike a select, stays in one loop with the product on a CPU."""

QUERY_BLOCK = 128
"""Queries of a whole sequence that are scored at once, against the keys up to the last of them."""

ROW_STEP = 128
"""Rows of a packed batch are computed up to the next multiple of this."""

MOST_LENGTHS = 6
"""Lengths of rows at most that a packed batch is compiled for; of long rows the multiples are larger."""

MOST_BLOCKS = 8
"""Blocks at most, for each is written out in the program."""


class Constants(NamedTuple):
    """What is known when attention is compiled: `width` is the longest row of a packed batch, None for rows."""

    scale: float
    softcap: float | None
    width: int | None


class Inputs(NamedTuple):
    """Query, key and value, `B×T×…` or `M×…`, the window, and starts and lengths of the rows of a packed batch."""

    query: Array
    key: Array
    value: Array
    window: int | Array | None
    starts: Array | None
    lengths: Array | None


class _Saved(NamedTuple):
    """What the backward pass needs besides the inputs: the result, and log Σ exp of each query's scores, `…×H`."""

    mixed: Array
    log_total: Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def causal_attention(constants: Constants, inputs: Inputs) -> Array:
    """Causal attention within whole rows, or within the rows of a packed batch.

    The backward pass computes the `T×T` weights anew, as quick as to keep and read them. It is written out: a switch
    would be differentiated into one that computes every length.
    """
    return _causal_forward(constants, inputs)[0]


def _causal_forward(constants: Constants, inputs: Inputs) -> tuple[Array, tuple[Inputs, _Saved]]:
    saved = _by_rows(partial(_attend_rows, constants, inputs.window), constants, inputs, inputs[:3])
    return saved.mixed, (inputs, saved)


def _causal_backward(constants: Constants, kept: tuple[Inputs, _Saved], slope: Array) -> tuple[Inputs]:
    inputs, saved = kept
    arrays = (*inputs[:3], *saved, slope)
    slopes = _by_rows(partial(_slopes_of_rows, constants, inputs.window), constants, inputs, arrays)
    query, key, value = slopes
    return (Inputs(query, key, value, None, None, None),)


causal_attention.defvjp(_causal_forward, _causal_backward)


def _by_rows(function: Callable[..., Any], constants: Constants, inputs: Inputs, arrays: tuple[Array, ...]) -> Any:
    """`function(*rows)` of rows, or of the rows of a packed batch, one after another.

    Each row is computed up to its length rounded up, so that there are few lengths to compile for. What is then behind
    its end belongs to the next row, which writes its own over it; the function gets zeros for it, for not
    even a weight of 0 would keep another row's NaN out.
    """
    width, starts, lengths = constants.width, inputs.starts, inputs.lengths
    if width is None or starts is None or lengths is None:
        return function(*arrays)
    slots = arrays[0].shape[0]
    step = max(ROW_STEP, -(-width // MOST_LENGTHS))
    sizes = [*range(step, width, step), width]
    # With room behind the last row, so that no slice is moved back for want of it.
    padded = [jnp.pad(array, ((0, width), *((0, 0),) * (array.ndim - 1))) for array in arrays]

    def cut(size: int, start: Array, length: Array) -> Any:
        own = jnp.arange(size) < length
        rows = [_masked(own, jax.lax.dynamic_slice_in_dim(array, start, size))[None] for array in padded]
        found = function(*rows)
        return jax.tree.map(lambda leaf: jnp.pad(leaf[0], ((0, width - size), *((0, 0),) * (leaf.ndim - 2))), found)

    def advance(line: Any, row: tuple[Array, Array]) -> tuple[Any, None]:
        start, length = row
        found = jax.lax.switch(
            jnp.maximum(length - 1, 0) // step, [partial(cut, size) for size in sizes], start, length
        )
        return jax.tree.map(partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0), line, found), None

    shapes = jax.eval_shape(partial(cut, width), *(jnp.zeros((), jnp.int32),) * 2)
    empty = jax.tree.map(lambda leaf: jnp.zeros((slots + width, *leaf.shape[1:]), leaf.dtype), shapes)
    line, _ = jax.lax.scan(advance, empty, (starts, lengths))
    filled = jnp.arange(slots) < starts[-1] + lengths[-1]
    return jax.tree.map(lambda leaf: _masked(filled, leaf[:slots]), line)


def _masked(keep: Array, x: Array) -> Array:
    """`x` `M×…` where `M` bool says so, else 0."""
    return jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x, 0)


def _attend_rows(constants: Constants, window: int | Array | None, query: Array, key: Array, value: Array) -> _Saved:
    """Attention within whole rows, a block of queries after another; the results behind a row's end mean nothing."""
    scale, softcap, _ = constants
    groups = by_group(query, key.shape[2])
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
    parts = []
    for first, last in query_blocks(query.shape[1]):
        hidden = _hidden(first, last, window)
        part = weigh(groups[:, :, :, first:last], keys[:, :, :last], values[:, :, :last], hidden, scale, softcap)
        parts.append(part)
    mixed, log_total = (by_token(jnp.concatenate(leaves, axis=3)) for leaves in zip(*parts, strict=True))
    return _Saved(mixed, log_total[..., 0])


def _slopes_of_rows(
    constants: Constants,
    window: int | Array | None,
    *arrays: Array,
) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value, from those three, the result, log Σ exp, and the gradient of the result."""
    query, key, value, mixed, log_total, slope = arrays
    scale, softcap, _ = constants
    count, length = key.shape[2], query.shape[1]
    queries, slopes, mixed, log_total = (by_group(part, count) for part in (query, slope, mixed, log_total[..., None]))
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
    inner = jnp.sum(slopes.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_query, to_key, to_value = [], [], []
    for first, last in query_blocks(length):
        here, behind = slice(first, last), ((0, 0), (0, 0), (0, length - last), (0, 0))
        near, seen, held, outer = queries[:, :, :, here], keys[:, :, :last], values[:, :, :last], slopes[:, :, :, here]
        scores, softcap_slope = _scores(near, seen, scale, softcap)
        weights = jnp.exp(scores + _hidden(first, last, window) - log_total[:, :, :, here])
        down = weights * (product("bghtd,bgsd->bghts", outer, held) - inner[:, :, :, here]) * softcap_slope
        weights, down = weights.astype(query.dtype), down.astype(query.dtype)
        to_query.append(product("bghts,bgsd->bghtd", down, seen))
        to_key.append(jnp.pad(product("bghts,bghtd->bgsd", down, near), behind))
        to_value.append(jnp.pad(product("bghts,bghtd->bgsd", weights, outer), behind))
    of_query = by_token(jnp.concatenate(to_query, axis=3)).astype(query.dtype)
    of_key, of_value = (sum(parts[1:], start=parts[0]).swapaxes(1, 2) for parts in (to_key, to_value))
    return of_query, of_key.astype(key.dtype), of_value.astype(value.dtype)


def query_blocks(length: int) -> list[tuple[int, int]]:
    """First and last query of each block of a whole row."""
    count = min(-(-length // QUERY_BLOCK), MOST_BLOCKS)
    return list(pairwise(length * number // count for number in range(count + 1)))


def _hidden(first: int, last: int, window: int | Array | None) -> Array:
    """What is added to the scores of queries from `first` on and all keys before `last`."""
    distance = jnp.arange(first, last)[:, None] - jnp.arange(last)[None]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    return jnp.where(visible, 0.0, MASKED).astype(jnp.float32)


def _scores(query: Array, key: Array, scale: float, softcap: float | None) -> tuple[Array, Array | float]:
    """Scores `B×G×H/G×T×S`, scaled and capped, and their derivative with respect to the plain products."""
    products = jnp.einsum("bghtd,bgsd->bghts", query, key, preferred_element_type=jnp.float32)
    if softcap is None:
        return scale * products, scale
    bounded = jnp.tanh(products * (scale / softcap))
    return softcap * bounded, scale * (1 - jnp.square(bounded))


def weigh(
    query: Array, key: Array, value: Array, hidden: Array, scale: float, softcap: float | None
) -> tuple[Array, Array]:
    """Means `B×G×H/G×T×d` of the values by the softmax of the scores, and log Σ exp of the scores, `B×G×H/G×T×1`.

    `hidden` is added to the scores.
    """
    scores = _scores(query, key, scale, softcap)[0] + hidden
    largest = jnp.max(scores, axis=-1, keepdims=True)
    # Divided after the product with the values, which is smaller.
    weights = jnp.exp(scores - largest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = jnp.einsum("bghts,bgsd->bghtd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
    return (mixed / total).astype(value.dtype), largest + jnp.log(total)


def by_group(query: Array, groups: int) -> Array:
    """`B×T×H×d` as `B×G×H/G×T×d`."""
    batch, length, heads, width = query.shape
    return query.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def by_token(mixed: Array) -> Array:
    """`B×G×H/G×T×d` as `B×T×H×d`."""
    batch, groups, heads, length, width = mixed.shape
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * heads, width)
