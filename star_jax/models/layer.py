"""What a block of the decoder is told of its place, and what is kept of the tokens that it has read.

Shapes: `B` batch, `S` cache slots, `P` tokens of a beginning, `L` layers, `G` key-value heads, `d` head width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.models.architecture import TransformerConfig
from star_jax.ops.attention_branches import SharedKeys

Array = jax.Array


class LayerCache(NamedTuple):
    """What one layer keeps of the tokens read so far; a head's slots lie together, as `attend_cache` reads them.

    Attributes:
      keys: `B×G×S×d`.
      values: `B×G×S×d`.
    """

    keys: Array
    values: Array


class Slots(NamedTuple):
    """What the slots of a cache hold, the same in all layers.

    Attributes:
      positions: `B×S` position in the sequence held by each slot; −1 where a slot holds nothing.
      used: scalar, how many tokens a row has written, or has left room for; the same for all rows, so that a write is
        one slice. Where it is more than S, slots have been written over, the oldest first.
    """

    positions: Array
    used: Array

    @property
    def last(self) -> Array:
        """The slot that was written last."""
        return (self.used - 1) % self.positions.shape[1]


Cached = tuple[LayerCache, Slots]
"""One layer's cache, and what its slots hold."""


class Layer(NamedTuple):
    """What a block has to know of its place: scalars, or `L` of them before the scan takes them apart.

    Attributes:
      number: of the layer, from 0.
      window: the most recent positions a token sees; None where no layer has one.
      rope: place in `ropes`; None where there is one kind.
      shared: what this layer keeps of a beginning that all rows share; None where there is none.
    """

    number: Array | int
    window: Array | int | None
    rope: Array | int | None
    shared: SharedKeys | None = None


def layers_of(config: TransformerConfig) -> Layer:
    """What each block has to know of its place, `L` each."""
    everything = np.iinfo(np.int32).max
    windows = [everything if window is None else window for window in config.windows]
    return Layer(
        jnp.arange(config.num_hidden_layers),
        jnp.asarray(windows, jnp.int32) if windows else None,
        jnp.asarray(config.layer_ropes, jnp.int32) if config.layer_ropes else None,
    )


def write_slot(cache: LayerCache, slots: Slots, key: Array, value: Array) -> LayerCache:
    """The cache with keys and values `B×1×G×d` of a new token in its slot, the last that was written."""
    place = (0, 0, slots.last, 0)
    return LayerCache(
        jax.lax.dynamic_update_slice(cache.keys, key.swapaxes(1, 2), place),
        jax.lax.dynamic_update_slice(cache.values, value.swapaxes(1, 2), place),
    )
