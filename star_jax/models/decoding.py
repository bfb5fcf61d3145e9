"""The decoder one token at a time, with a cache of keys and values.

The layers are written out instead of scanned, so that each has a cache of its own: a layer's part of one stacked array
would be copied before every product with it.

Shapes: `B` batch, `P` prompt tokens, `S` cache slots, `D` model width, `L` layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from star_jax.models.layer import Layer, LayerCache, Slots, layers_of
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.transformer import Block, LanguageModel, angles_of, embed, embedding_scale, final_norm
from star_jax.ops.packing import make_packing
from star_jax.ops.platform import before_the_loop_on_a_cpu, target_device
from star_jax.parallel.mesh import parts_of_a_model
from star_jax.parallel.parts import Part

Array = jax.Array
Variables = Mapping[str, Any]


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far: `L` caches, and what their slots hold."""

    layers: tuple[LayerCache, ...]
    slots: Slots


def unstacked(model: LanguageModel, adapter: Adapter | None) -> tuple[Variables, ...]:
    """The variables of each layer by itself, to be taken once for many steps."""
    stacked = {name: tree["layers"] for name, tree in with_adapter(model.params, adapter).items()}
    count = model.config.num_hidden_layers
    return tuple(jax.tree.map(lambda leaf, number=number: leaf[number], stacked) for number in range(count))


def step_variables(
    model: LanguageModel, adapter: Adapter | None, layers: tuple[Variables, ...]
) -> tuple[Variables, ...]:
    """`layers`, from `unstacked`, as a step of a loop shall read them: taken before the loop, or again in it.

    Quantised weights are taken before: the compiler would move what it makes of them in the loop out of it, and keep
    the full weights of all layers.
    """
    kernels = [layer["kernel"] for layer in model.params["layers"].values() if "kernel" in layer]
    if not all(isinstance(kernel, jax.Array | Part) for kernel in kernels):
        return layers
    return before_the_loop_on_a_cpu(layers, lambda: unstacked(model, adapter))


def unstacked_on_a_cpu(model: LanguageModel, adapter: Adapter | None) -> tuple[Variables, ...] | None:
    """`unstacked` as arrays of their own, for programs of a few steps each, which would copy all weights every time.

    None on accelerators, which read layers where they lie, and where devices share a model.
    """
    if target_device().platform != "cpu" or parts_of_a_model() > 1:
        return None
    return jax.jit(unstacked)(model, adapter)


def prefill(
    model: LanguageModel,
    adapter: Adapter | None,
    prompts: Array,
    lengths: Array,
    slots: int,
    tokens: int | None = None,
) -> tuple[Array, KVCache]:
    """Reads whole prompts.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      prompts: `B×P` int32, right-padded.
      lengths: `B` int32.
      slots: S, the slots to make, P at least.
      tokens: how many are computed, at least those of all prompts together; None for B·P, padding and all.

    Returns:
      Hidden states `B×D` of the last token of each prompt, and the cache. All rows go on at slot P; where a prompt is
      shorter, the slots between hold nothing.
    """
    width = prompts.shape[1]
    packing = None if tokens is None else make_packing(lengths, width, tokens)
    hidden, kept = model.decoder.apply(with_adapter(model.params, adapter), prompts, None, packing)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    places = jnp.arange(slots, dtype=jnp.int32)[None]
    positions = jnp.where(places < lengths[:, None], places, -1)
    room = ((0, 0), (0, 0), (0, slots - width), (0, 0))
    layers = tuple(
        jax.tree.map(lambda leaf, number=number: jnp.pad(leaf[number], room), kept)
        for number in range(model.config.num_hidden_layers)
    )
    return last, KVCache(layers, Slots(positions, jnp.asarray(width, jnp.int32)))


def decode_step(
    model: LanguageModel, layers: Sequence[Variables], tokens: Array, positions: Array, cache: KVCache
) -> tuple[Array, KVCache]:
    """Reads one token a row.

    Args:
      model: decoder and frozen weights; those of the layers are not read.
      layers: from `unstacked`.
      tokens: `B` int32.
      positions: `B` int32 positions in the sequence; −1 for a row that has ended, whose hidden states mean nothing.
      cache: of the tokens before. Where all slots are used, the oldest is written over.

    Returns:
      Final hidden states `B×D`, normed, and the cache with these tokens in it.
    """
    config = model.config
    here = cache.slots.used % cache.slots.positions.shape[1]
    filled = jax.lax.dynamic_update_slice(cache.slots.positions, positions[:, None], (0, here))
    slots = Slots(filled, cache.slots.used + 1)
    hidden: Any = embed(config).apply({"params": model.params["embed_tokens"]}, tokens[:, None])
    hidden = hidden.astype(config.dtype) * embedding_scale(config)
    angles = angles_of(config, positions[:, None])
    whole = layers_of(config)
    kept = []
    for number, (variables, old) in enumerate(zip(layers, cache.layers, strict=True)):
        layer: Layer = jax.tree.map(itemgetter(number), whole)
        read: Any = Block(config).apply(variables, hidden, layer, angles, None, None, (old, slots))
        hidden, new = read
        kept.append(new)
    hidden = final_norm(config).apply({"params": model.params["norm"]}, hidden)
    return hidden[:, 0], KVCache(tuple(kept), slots)
