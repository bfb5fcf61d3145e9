"""The decoder in Linen: one block for all families, scanned over stacked parameters.

What differs between families is data (`models.architecture`). A call reads whole rows and returns hidden states; the
output projection is applied by the caller, to the positions it needs (`models.lm_head`). One token at a time is for
`models.decoding`, with the same block.

Shapes: `B` batch, `T` tokens, `S` cache slots, `D` model width, `V` vocabulary, `L` layers, `H` query heads,
`G` key-value heads, `d` head width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from star_jax.models.architecture import TransformerConfig
from star_jax.models.dropout import Dropout, draw_mask
from star_jax.models.layer import Cached, Layer, LayerCache, layers_of, write_slot
from star_jax.models.lora import LoraDense
from star_jax.models.mlp import ExpertMLP, gated_mlp
from star_jax.models.rotary import Angles, rotate, stretched
from star_jax.ops.attention import (
    AttentionOptions,
    PackedRows,
    attend_cache,
    choose_implementation,
    packed_attention,
    self_attention,
)
from star_jax.ops.attention_branches import SharedKeys, branching_attention
from star_jax.ops.matmul import DropoutMask
from star_jax.ops.packing import Packing, pack_rows, unpack_rows
from star_jax.ops.platform import computed_once
from star_jax.ops.pointwise import RMSNorm

Array = jax.Array

UNROLLED_LAYERS = 4
"""Up to this many layers the scan is written out: a training step of the embedded model takes a quarter less time."""

SHORT_ROW = 64
"""Rows of up to this many tokens attend all at once, padding and all: one by one would take longer."""


class Block(nn.Module):
    """One layer. Over whole rows by itself; over one new token a row with the cache of the tokens before it."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        hidden: Array,
        layer: Layer,
        angles: Angles,
        dropout: Dropout | None,
        packing: Packing | None = None,
        cached: Cached | None = None,
    ) -> tuple[Array, LayerCache]:
        """One pass through the layer.

        Args:
          hidden: `B×T×D`, or `1×M×D` packed, the residual stream; T is 1 with a cache.
          layer: number and kind of the layer.
          angles: of each kind of rotary positions.
          dropout: masks for the adapter's input; None for off.
          packing: where the tokens of the rows stand, when they are packed.
          cached: keys and values of earlier tokens, and what the cache's slots hold once the new token is written, at
            the slot `last`; None for whole rows.

        Returns:
          The stream, and the cache with the new token in it, or keys and values of the whole rows, S = T.
        """
        normed = self._norm("pre_attention_norm", hidden)
        mixed, cache = self._attention(normed, layer, angles, dropout, packing, cached)
        hidden = self._added(hidden, self._norm("post_attention_norm", mixed))
        added = self._mlp(self._norm("pre_mlp_norm", hidden), layer, dropout, packing)
        return self._added(hidden, self._norm("post_mlp_norm", added)), cache

    def _added(self, hidden: Array, more: Array) -> Array:
        """The stream with what a sub-layer adds to it."""
        multiplier = self.config.residual_multiplier
        return hidden + (more if multiplier == 1.0 else more * jnp.asarray(multiplier, more.dtype))

    def _norm(self, name: str, x: Array) -> Array:
        """The norm of that name, where a block of this architecture has it."""
        return self._rms(name, x) if name in self.config.architecture.norms else x

    def _rms(self, name: str, x: Array) -> Array:
        config = self.config
        return RMSNorm(config.rms_norm_eps, config.dtype, config.architecture.norm_offset, name=name)(x)

    def _project(self, name: str, features: int, x: Array, mask: DropoutMask | None) -> Array:
        config = self.config
        use_bias = name in config.architecture.biases
        return LoraDense(features, config.dtype, use_bias, name=name)(x, mask)

    def _attention(
        self,
        x: Array,
        layer: Layer,
        angles: Angles,
        dropout: Dropout | None,
        packing: Packing | None,
        cached: Cached | None,
    ) -> tuple[Array, LayerCache]:
        config = self.config
        query, key, value = self._query_key_value(x, layer, dropout, packing)
        if layer.rope is not None:
            angles = tuple(part[layer.rope] for part in angles)
        query, key = (rotate(x, angles, config.architecture.interleaved) for x in (query, key))
        query = stretched(query, angles)
        options = self._options(layer)
        if cached is not None:
            old, slots = cached
            cache = write_slot(old, slots, key, value)
            at = jax.lax.dynamic_slice_in_dim(slots.positions, slots.last, 1, axis=1)
            mixed = attend_cache(query, *cache, at, slots.positions, options)
        elif packing is None:
            cache = LayerCache(key.swapaxes(1, 2), value.swapaxes(1, 2))
            mixed = self_attention(query, key, value, options, windows=config.windows)
        else:
            mixed, cache = self._packed_attention(query[0], key[0], value[0], packing, layer)
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        mask = draw_mask(dropout, layer.number, "o_proj", mixed, packing)
        return self._project("o_proj", x.shape[-1], mixed, mask), cache

    def _options(self, layer: Layer) -> AttentionOptions:
        config = self.config
        return AttentionOptions(config.attention_scale, layer.window, config.attention_softcap)

    def _packed_attention(
        self, query: Array, key: Array, value: Array, packing: Packing, layer: Layer
    ) -> tuple[Array, LayerCache]:
        """`1×M×H×d` of queries, keys and values `M×…`, and keys and values in rows."""
        config, options = self.config, self._options(layer)
        query, key, value = computed_once((query, key, value))
        keys, values = unpack_rows(key, packing), unpack_rows(value, packing)
        width = packing.real.shape[1]
        kernel = choose_implementation(query.dtype, config.head_dim, softcap=config.attention_softcap).kernel
        if packing.branches is not None:
            mixed = branching_attention(query, key, value, packing, options, layer.shared)
        elif kernel == "xla" and width > SHORT_ROW:
            mixed = packed_attention(query, key, value, PackedRows(packing.starts, packing.lengths, width), options)
        else:
            rows = self_attention(unpack_rows(query, packing), keys, values, options, windows=config.windows)
            mixed = pack_rows(rows, packing)
        return mixed[None], LayerCache(keys.swapaxes(1, 2), values.swapaxes(1, 2))

    def _query_key_value(
        self, x: Array, layer: Layer, dropout: Dropout | None, packing: Packing | None
    ) -> tuple[Array, Array, Array]:
        """`B×T×H×d` and twice `B×T×G×d`."""
        config, architecture = self.config, self.config.architecture
        counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        widths = [count * config.head_dim for count in counts]
        mask = draw_mask(dropout, layer.number, "qkv_proj", x, packing)
        if architecture.fused:
            whole = self._project("qkv_proj", sum(widths), x, mask)
            parts = jnp.split(whole, np.cumsum(widths)[:2].tolist(), axis=-1)
        else:
            names = ("q_proj", "k_proj", "v_proj")
            parts = [self._project(name, wide, x, mask) for name, wide in zip(names, widths, strict=True)]
        if architecture.qk_norm == "width":
            parts[:2] = [self._rms(name, part) for name, part in zip(("q_norm", "k_norm"), parts, strict=False)]
        heads = [part.reshape(*x.shape[:2], count, -1) for part, count in zip(parts, counts, strict=True)]
        if architecture.qk_norm == "head":
            heads[:2] = [self._rms(name, head) for name, head in zip(("q_norm", "k_norm"), heads, strict=False)]
        return heads[0], heads[1], heads[2]

    def _mlp(self, x: Array, layer: Layer, dropout: Dropout | None, packing: Packing | None) -> Array:
        if self.config.experts is not None:
            return ExpertMLP(self.config, name="experts")(x)

        def mask(name: str, read: Array) -> DropoutMask | None:
            return draw_mask(dropout, layer.number, name, read, packing)

        return gated_mlp(self.config, self._project, mask, x)


class Decoder(nn.Module):
    """The stack of blocks between embedding and output projection, over whole rows.

    Attributes:
      config: shape and constants.
      rematerialise: whether a backward pass keeps nothing of a layer but its input.
    """

    config: TransformerConfig
    rematerialise: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        dropout: Dropout | None = None,
        packing: Packing | None = None,
        shared: SharedKeys | None = None,
    ) -> tuple[Array, LayerCache]:
        """One pass.

        Args:
          tokens: `B×T` int32, padded on the right or not at all; no mask is needed, since attention is causal.
          dropout: masks for the adapter's input; None for off.
          packing: the real tokens packed, to spend no time on padding; None to treat it like tokens.
          shared: keys and values `L×G×P×d` of tokens that stand before every row, whose positions go on behind them;
            only with a packing of rows that branch.

        Returns:
          Final hidden states `B×T×D`, normed, finite and meaningless at padding; and keys and values of all layers,
          `L×B×G×T×d`, which cost nothing where nobody uses them.

        Raises:
          ValueError: `shared` without branches.
        """
        config = self.config
        if shared is not None and (packing is None or packing.branches is None):
            raise ValueError("a shared beginning is for packed rows that branch")
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        if packing is not None:
            tokens, positions = pack_rows(tokens, packing)[None], packing.positions[None]
        if shared is not None:
            positions = positions + shared.keys.shape[-2]
        hidden = embed(config, "embed_tokens")(tokens).astype(config.dtype) * embedding_scale(config)
        # Of layers that are written out, the compiler would compute nothing anew, or all of them at once.
        unrolled = config.num_hidden_layers <= UNROLLED_LAYERS and not self.rematerialise
        layers = nn.scan(
            nn.remat(Block, prevent_cse=False) if self.rematerialise else Block,
            variable_axes={"params": 0, "lora": 0, "lora_scale": 0},
            variable_broadcast="kernels",
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
            unroll=config.num_hidden_layers if unrolled else 1,
        )(config, name="layers")
        places = layers_of(config)._replace(shared=shared)
        hidden, kept = layers(hidden, places, angles_of(config, positions), dropout, packing)
        hidden = final_norm(config, "norm")(hidden if packing is None else unpack_rows(hidden[0], packing))
        if not config.tie_word_embeddings:
            # Only declared here: the caller multiplies by it, at the positions it needs (`models.lm_head`).
            shape = (config.vocab_size, config.hidden_size)
            self.param("lm_head", nn.initializers.normal(0.02), shape, config.dtype)
        return hidden, kept


def embed(config: TransformerConfig, name: str | None = None) -> nn.Embed:
    """The embedding of a decoder."""
    return nn.Embed(config.vocab_size, config.hidden_size, param_dtype=config.dtype, name=name)


def embedding_scale(config: TransformerConfig) -> Array:
    """What embeddings are multiplied by."""
    width = config.hidden_size**0.5 if config.architecture.scaled_embedding else 1.0
    return jnp.asarray(width * config.embedding_multiplier, config.dtype)


def final_norm(config: TransformerConfig, name: str | None = None) -> RMSNorm:
    """The norm behind the last layer; a divisor of the logits divides what the head reads."""
    gain = 1 / config.logit_divisor
    return RMSNorm(config.rms_norm_eps, config.dtype, config.architecture.norm_offset, gain, name=name)


def angles_of(config: TransformerConfig, positions: Array) -> Angles:
    """Rotary angles of `positions` `B×T`; those of each kind stacked where layers differ."""
    kinds = [rope.angles(positions, config.head_dim) for rope in config.ropes]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *kinds) if config.layer_ropes else kinds[0]


@struct.dataclass
class LanguageModel:
    """A decoder with its frozen weights; a pytree whose decoder is static, so that `jit` takes it whole."""

    decoder: Decoder = struct.field(pytree_node=False)
    params: Any

    @property
    def config(self) -> TransformerConfig:
        """Shape and constants of the decoder."""
        return self.decoder.config
