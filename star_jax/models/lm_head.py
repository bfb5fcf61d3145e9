"""The output projection, run on response positions only and a chunk of them at a time.

Logits are the largest array of a forward pass: here they never exist for a prompt or for padding, and never for more
positions at once than `chunk_size` says.

Shapes: `K` samples, `B` batch, `T` tokens, `D` model width, `V` vocabulary, `C` positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from star_jax.models.transformer import LanguageModel
from star_jax.ops.platform import target_device

Array = jax.Array
Result = TypeVar("Result")

LOGITS_AT_ONCE = {"cpu": 1 << 20}
"""Platform -> logits a chunk should hold; on a CPU they should stay in its cache between one use and the next."""

LOGITS_ELSEWHERE = 1 << 26
"""Logits a chunk should hold on any other platform: 256 MiB of float32."""

FEWEST_POSITIONS = 64
"""A chunk is not made smaller than this where there are so many: every chunk reads the whole weight once."""

FEW = 4
"""Where few positions are left, as of short answers, chunks have so many times fewer: two such take less time than one
that is mostly empty. Of SmolLM2-135M, a training step on 8 rows of 2 response tokens takes 5 % less."""


@struct.dataclass
class OutputHead:
    """The output projection.

    Attributes:
      weight: `V×D`.
      softcap: c in c · tanh(logit / c), as in Gemma 2; None for none.
    """

    weight: Array
    softcap: float | None = struct.field(pytree_node=False, default=None)


def output_head(model: LanguageModel) -> OutputHead:
    """The model's head; its weight is the embedding where the two are tied."""
    params = model.params
    weight = params["lm_head"] if "lm_head" in params else params["embed_tokens"]["embedding"]
    return OutputHead(weight, model.config.logit_softcap)


def logits(hidden: Array, head: OutputHead) -> Array:
    """Float32 logits `…×V` of hidden states `…×D`, accumulated in float32."""
    return logits_and_slope(hidden, head)[0]


def logits_and_slope(hidden: Array, head: OutputHead) -> tuple[Array, Array | None]:
    """`logits`, and their derivative `…×V` with respect to the plain products where there is a softcap."""
    products = jnp.einsum("...d,vd->...v", hidden, head.weight, preferred_element_type=jnp.float32)
    if head.softcap is None:
        return products, None
    bounded = jnp.tanh(products / head.softcap)
    return head.softcap * bounded, 1 - jnp.square(bounded)


def capped(products: Array, head: OutputHead) -> Array:
    """The logits of plain products of hidden states and rows of the weight, of any shape."""
    return products if head.softcap is None else head.softcap * jnp.tanh(products / head.softcap)


def chunk_size(head: OutputHead, samples: int = 1) -> int:
    """Positions whose logits are held at once, where each has those of so many samples."""
    most = LOGITS_AT_ONCE.get(target_device().platform, LOGITS_ELSEWHERE)
    return max(FEWEST_POSITIONS, most // (head.weight.shape[0] * samples))


def at_positions(function: Callable[..., Result], mask: Array, *arrays: Array, chunk: int) -> Result:
    """Applies `function` where `mask` says so, to chunks of positions, one after another.

    The positions are gathered first, so that no time is spent on the others, however many there are and wherever they
    lie. Not differentiable: how many chunks there are is known at run time only.

    Args:
      function: maps `C×…` of each array to a pytree of `C×…` arrays.
      mask: `B×T` bool.
      *arrays: `B×T×…` each.
      chunk: C.

    Returns:
      The pytree with leaves `B×T×…`; 0 where `mask` is False.
    """
    flat, count = jnp.asarray(mask).reshape(-1), jnp.sum(mask)
    chunk = min(chunk, flat.size)
    few = -(-chunk // FEW)
    slots = -(-flat.size // chunk) * chunk + few
    places = jnp.nonzero(flat, size=slots, fill_value=0)[0]
    rows = [jnp.asarray(array).reshape(flat.size, *array.shape[2:]) for array in arrays]

    def part(size: int, start: Array) -> Result:
        here = jax.lax.dynamic_slice_in_dim(places, start, size)
        return function(*(row[here] for row in rows))

    def through(size: int, first: Array, chunks: Array, results: Result) -> Result:
        """The results with those of so many chunks of a size written into them, from a position on."""

        def advance(number: Array, results: Result) -> Result:
            start = first + number * size
            write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
            return jax.tree.map(write, results, part(size, start))

        return jax.lax.fori_loop(0, chunks, advance, results)

    shapes = jax.eval_shape(partial(part, chunk), jnp.zeros((), jnp.int32))
    empty = jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape[1:]), leaf.dtype), shapes)
    # Whole chunks, the last one also where more than half of it is left; then what is left, in smaller ones.
    whole = count // chunk + (count % chunk > FEW // 2 * few)
    gathered = through(chunk, jnp.zeros_like(count), whole, empty)
    rest = jnp.maximum(count - whole * chunk, 0)
    gathered = through(few, whole * chunk, -(-rest // few), gathered)
    back = jnp.maximum(jnp.cumsum(flat) - 1, 0)

    def spread(leaf: Array) -> Array:
        kept = flat.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.where(kept, leaf[back], 0).reshape(*mask.shape, *leaf.shape[1:])

    return jax.tree.map(spread, gathered)
