"""The output projection, run on response positions only and a chunk of them at a time.

Logits are the largest array of a forward pass: here they never exist for prompt positions, and never for
more positions at once than `CHUNK_ELEMENTS` float32 numbers hold.

Shapes: `D` model width, `V` vocabulary, `M` positions, `C` positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from star_jax.models.transformer import LanguageModel

Array = jax.Array
Result = TypeVar("Result")

CHUNK_ELEMENTS = 1 << 22
"""Logits held at once: 4 Mi float32 numbers, 16 MiB."""


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
    products = jnp.einsum("...d,vd->...v", hidden, head.weight, preferred_element_type=jnp.float32)
    return products if head.softcap is None else head.softcap * jnp.tanh(products / head.softcap)


def map_positions(function: Callable[..., Result], head: OutputHead, *arrays: Array, samples: int = 1) -> Result:
    """Applies `function` to chunks of positions, one after another.

    Args:
      function: maps chunks `C×…` of the arrays to a pytree of `C×…` arrays.
      head: the output projection, for the size of a chunk.
      *arrays: `M×…` each, M positions.
      samples: logits vectors that `function` holds a position.

    Returns:
      The pytree with `M×…` leaves. Under `grad` the logits of a chunk are computed again in the backward
      pass, so that they are not kept.
    """
    count = arrays[0].shape[0]
    chunk = max(1, min(count, CHUNK_ELEMENTS // (head.weight.shape[0] * samples)))
    if chunk == count:
        return function(*arrays)
    return jax.lax.map(lambda row: jax.checkpoint(_one(function))(*row), arrays, batch_size=chunk)


def _one(function: Callable[..., Result]) -> Callable[..., Result]:
    def single(*row: Array) -> Result:
        return jax.tree.map(lambda leaf: leaf[0], function(*(part[None] for part in row)))

    return single
