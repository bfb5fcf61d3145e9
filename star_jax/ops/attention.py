"""Attention: one function for whole sequences, whatever the platform, and one for queries into a cache.

A whole sequence goes to the kernel its platform is quickest with (`choose_implementation`, `ops.attention_kernels`);
a few queries against a cache are plain XLA everywhere.

Shapes: `B` batch, `T` queries, `S` keys, `H` query heads, `G` key-value heads, `d` head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from star_jax.ops.attention_kernels import IMPLEMENTATIONS, AttentionImplementation, choose_implementation

Array = jax.Array

MASKED = -1e30
"""Added to the scores of hidden keys. A sum, unlike a select, stays in one loop with the product on a CPU."""

QUERY_BLOCK = 128
"""Queries of a whole sequence that are scored at once, against the keys up to the last of them."""

ROW_STEP = 128
"""Rows of a line are computed up to the next multiple of this."""

MOST_LENGTHS = 6
"""Lengths of rows at most that a line is compiled for; of long rows the multiples are larger."""

MOST_BLOCKS = 8
"""Blocks at most, for each is written out in the program."""


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
        return _causal(_Constants(scale, softcap, None), _Inputs(query, key, value, window, None, None))
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
    """Causal grouped-query attention within the rows of a line of M slots (`ops.packing`), in XLA.

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
    constants = _Constants(options.scale_for(query.shape[-1]), options.softcap, rows.width)
    return _causal(constants, _Inputs(query, key, value, options.window, rows.starts, rows.lengths))


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
    heads = _by_group(query, keys.shape[1])
    # A product of one narrow row is not taken by the CPU's fast kernels; one of two rows is, several times as quick.
    lone = heads.shape[2] * heads.shape[3] == 1 and query.dtype != jnp.float32
    if lone:
        heads = jnp.broadcast_to(heads, (*heads.shape[:2], 2, *heads.shape[3:]))
    mixed, _ = _weigh(heads, keys, values, hidden, options.scale_for(query.shape[-1]), options.softcap)
    return _by_token(mixed[:, :, :1] if lone else mixed)


def _require_window(window: int | Array | None) -> None:
    if window is not None and not isinstance(window, jax.Array) and window < 1:
        raise ValueError(f"window is {window}; a query sees at least 1 position, its own")


class _Constants(NamedTuple):
    """What is known when attention is compiled: `width` is the longest row of a line, None for rows."""

    scale: float
    softcap: float | None
    width: int | None


class _Inputs(NamedTuple):
    """Query, key and value, `B×T×…` or `M×…`, the window, and where the rows of a line begin and how long they are."""

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
def _causal(constants: _Constants, inputs: _Inputs) -> Array:
    """`self_attention` and `packed_attention` in XLA.

    The backward pass computes the `T×T` weights anew, as quick as to keep and read them. It is written out: a switch
    would be differentiated into one that computes every length.
    """
    return _causal_forward(constants, inputs)[0]


def _causal_forward(constants: _Constants, inputs: _Inputs) -> tuple[Array, tuple[_Inputs, _Saved]]:
    saved = _by_rows(partial(_attend_rows, constants, inputs.window), constants, inputs, inputs[:3])
    return saved.mixed, (inputs, saved)


def _causal_backward(constants: _Constants, kept: tuple[_Inputs, _Saved], slope: Array) -> tuple[_Inputs]:
    inputs, saved = kept
    arrays = (*inputs[:3], *saved, slope)
    slopes = _by_rows(partial(_slopes_of_rows, constants, inputs.window), constants, inputs, arrays)
    query, key, value = slopes
    return (_Inputs(query, key, value, None, None, None),)


_causal.defvjp(_causal_forward, _causal_backward)


def _by_rows(function: Callable[..., Any], constants: _Constants, inputs: _Inputs, arrays: tuple[Array, ...]) -> Any:
    """`function(*rows)` of rows, or of the rows of a line, one after another.

    Each row of a line is computed up to its length rounded up, so that there are few lengths to compile for. What is
    then behind its end belongs to the next row, which writes its own over it; the function gets zeros for it, for not
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


def _attend_rows(constants: _Constants, window: int | Array | None, query: Array, key: Array, value: Array) -> _Saved:
    """Attention within whole rows, a block of queries after another; the results behind a row's end mean nothing."""
    scale, softcap, _ = constants
    groups = _by_group(query, key.shape[2])
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
    parts = []
    for first, last in _blocks(query.shape[1]):
        hidden = _hidden(first, last, window)
        part = _weigh(groups[:, :, :, first:last], keys[:, :, :last], values[:, :, :last], hidden, scale, softcap)
        parts.append(part)
    mixed, log_total = (_by_token(jnp.concatenate(leaves, axis=3)) for leaves in zip(*parts, strict=True))
    return _Saved(mixed, log_total[..., 0])


def _slopes_of_rows(
    constants: _Constants,
    window: int | Array | None,
    *arrays: Array,
) -> tuple[Array, Array, Array]:
    """Gradients of query, key and value, from those three, the result, log Σ exp, and the gradient of the result."""
    query, key, value, mixed, log_total, slope = arrays
    scale, softcap, _ = constants
    count, length = key.shape[2], query.shape[1]
    queries, slopes, mixed, log_total = (_by_group(part, count) for part in (query, slope, mixed, log_total[..., None]))
    keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
    inner = jnp.sum(slopes.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_query, to_key, to_value = [], [], []
    for first, last in _blocks(length):
        here, behind = slice(first, last), ((0, 0), (0, 0), (0, length - last), (0, 0))
        near, seen, held, outer = queries[:, :, :, here], keys[:, :, :last], values[:, :, :last], slopes[:, :, :, here]
        scores, softcap_slope = _scores(near, seen, scale, softcap)
        weights = jnp.exp(scores + _hidden(first, last, window) - log_total[:, :, :, here])
        down = weights * (product("bghtd,bgsd->bghts", outer, held) - inner[:, :, :, here]) * softcap_slope
        weights, down = weights.astype(query.dtype), down.astype(query.dtype)
        to_query.append(product("bghts,bgsd->bghtd", down, seen))
        to_key.append(jnp.pad(product("bghts,bghtd->bgsd", down, near), behind))
        to_value.append(jnp.pad(product("bghts,bghtd->bgsd", weights, outer), behind))
    of_query = _by_token(jnp.concatenate(to_query, axis=3)).astype(query.dtype)
    of_key, of_value = (sum(parts[1:], start=parts[0]).swapaxes(1, 2) for parts in (to_key, to_value))
    return of_query, of_key.astype(key.dtype), of_value.astype(value.dtype)


def _blocks(length: int) -> list[tuple[int, int]]:
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


def _weigh(
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


def _by_group(query: Array, groups: int) -> Array:
    """`B×T×H×d` as `B×G×H/G×T×d`."""
    batch, length, heads, width = query.shape
    return query.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)


def _by_token(mixed: Array) -> Array:
    """`B×G×H/G×T×d` as `B×T×H×d`."""
    batch, groups, heads, length, width = mixed.shape
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * heads, width)
