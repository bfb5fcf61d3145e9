"""The decoder in Linen: one block for all families, scanned over stacked parameters.

What differs between families is data: `Architecture` for the parts a block has, `TransformerConfig` for numbers.
Which family has which is in `models.families`. A call returns hidden states; the output projection is applied by
the caller, to the positions it needs (`models.head`).

Shapes: `B` batch, `T` tokens, `S` cache slots, `D` model width, `V` vocabulary, `L` layers, `G` key-value heads,
`d` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from star_jax.models.attention import attend
from star_jax.models.lora import Dropout, LoraDense
from star_jax.models.rotary import Angles, Rope, rotate

Array = jax.Array

UNROLLED_LAYERS = 4
"""Up to this many layers the scan is written out: a training step of the embedded model takes a quarter less time."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
}
"""Activations of the gate, by their Hugging Face names."""


@dataclass(frozen=True)
class Architecture:
    """The parts of a block.

    Attributes:
      norms: those a block has, of `pre_attention_norm`, `post_attention_norm`, `pre_mlp_norm`, `post_mlp_norm`;
        a post-norm is applied to what a sub-layer adds to the residual stream.
      qk_norm: norm of queries and keys before the rotation: each head by itself, or all heads together.
      norm_offset: added to a norm's weight before it multiplies.
      biases: projections that add a bias.
      fused: query, key and value are one projection, and so are gate and up.
      scaled_embedding: embeddings are multiplied by √D.
    """

    norms: tuple[str, ...] = ("pre_attention_norm", "pre_mlp_norm")
    qk_norm: Literal["none", "head", "width"] = "none"
    norm_offset: float = 0.0
    biases: tuple[str, ...] = ()
    fused: bool = False
    scaled_embedding: bool = False


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and constants of a decoder; names are those of a Hugging Face `config.json` where it has them.

    Attributes:
      windows: for each layer, the most recent positions a token sees, or None for all; empty where no layer has one.
      ropes: the kinds of rotary positions there are.
      layer_ropes: for each layer, its place in `ropes`; empty where there is one kind.
      attention_scale: multiplies query · key; None for 1 / √d.
      attention_softcap, logit_softcap: c in c · tanh(x / c) of attention scores and of logits; None for none.
      dtype: of weights and products.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    windows: tuple[int | None, ...] = ()
    ropes: tuple[Rope, ...] = (Rope(),)
    layer_ropes: tuple[int, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    architecture: Architecture = Architecture()
    dtype: str = "float32"


class KVCache(NamedTuple):
    """Keys and values of the tokens read so far.

    Attributes:
      keys: `L×B×S×G×d`.
      values: `L×B×S×G×d`.
      positions: `B×S` position in the sequence held by each slot; −1 where a slot holds nothing.
      used: scalar, slots written so far; the same for all rows, so that a write is one slice.
    """

    keys: Array
    values: Array
    positions: Array
    used: Array


class Layer(NamedTuple):
    """What a block is told about its place: scalars, or `L` of them before the scan takes them apart.

    Attributes:
      number: of the layer, from 0.
      window: the most recent positions a token sees; None where no layer has one.
      rope: place in `ropes`; None where there is one kind.
    """

    number: Array
    window: Array | None
    rope: Array | None


def layers_of(config: TransformerConfig) -> Layer:
    """What the blocks are told, `L` each."""
    everything = np.iinfo(np.int32).max
    windows = [everything if window is None else window for window in config.windows]
    return Layer(
        jnp.arange(config.num_hidden_layers),
        jnp.asarray(windows, jnp.int32) if windows else None,
        jnp.asarray(config.layer_ropes, jnp.int32) if config.layer_ropes else None,
    )


def empty_cache(config: TransformerConfig, batch: int, slots: int) -> KVCache:
    """A cache of `slots` free slots for `batch` rows."""
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.dtype)
    return KVCache(zeros, zeros, jnp.full((batch, slots), -1, jnp.int32), jnp.zeros((), jnp.int32))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (Zhang & Sennrich 2019, equation 4)."""

    epsilon: float
    dtype: Any
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis."""
        start = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", start, (x.shape[-1],), self.dtype).astype(jnp.float32) + self.offset
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * scale).astype(self.dtype)


class Block(nn.Module):
    """One layer. The carry is the residual stream and, when decoding, the whole cache, updated in place."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, KVCache | None],
        layer: Layer,
        positions: Array,
        angles: Angles,
        dropout: Dropout | None,
    ) -> tuple[tuple[Array, KVCache | None], None]:
        """Maps (`B×T×D`, cache) to the same; `positions` `B×T`, `angles` of each kind of rotary positions."""
        hidden, cache = carry
        mixed, cache = self._attention(
            self._norm("pre_attention_norm", hidden), cache, layer, positions, angles, dropout
        )
        hidden = hidden + self._norm("post_attention_norm", mixed)
        added = self._mlp(self._norm("pre_mlp_norm", hidden), layer, dropout)
        return (hidden + self._norm("post_mlp_norm", added), cache), None

    def _norm(self, name: str, x: Array) -> Array:
        """The norm of that name, where a block of this architecture has it."""
        return self._rms(name, x) if name in self.config.architecture.norms else x

    def _rms(self, name: str, x: Array) -> Array:
        config = self.config
        return RMSNorm(config.rms_norm_eps, config.dtype, config.architecture.norm_offset, name=name)(x)

    def _project(self, name: str, features: int, x: Array, layer: Layer, dropout: Dropout | None) -> Array:
        config = self.config
        use_bias = name in config.architecture.biases
        return LoraDense(features, config.dtype, use_bias, name=name)(x, layer.number, dropout)

    def _attention(
        self,
        x: Array,
        cache: KVCache | None,
        layer: Layer,
        positions: Array,
        angles: Angles,
        dropout: Dropout | None,
    ) -> tuple[Array, KVCache | None]:
        config = self.config
        batch, length, width = x.shape
        query, key, value = self._query_key_value(x, layer, dropout)
        if layer.rope is not None:
            angles = (angles[0][layer.rope], angles[1][layer.rope])
        query, key = rotate(query, angles), rotate(key, angles)
        if cache is None:
            keys, values, key_positions = key, value, positions
        else:
            start = (layer.number, 0, cache.used, 0, 0)
            cache = cache._replace(
                keys=jax.lax.dynamic_update_slice(cache.keys, key[None], start),
                values=jax.lax.dynamic_update_slice(cache.values, value[None], start),
            )
            keys, values, key_positions = cache.keys[layer.number], cache.values[layer.number], cache.positions
        mixed = attend(
            query,
            keys,
            values,
            positions,
            key_positions,
            scale=config.attention_scale,
            window=layer.window,
            softcap=config.attention_softcap,
        )
        return self._project("o_proj", width, mixed.reshape(batch, length, -1), layer, dropout), cache

    def _query_key_value(self, x: Array, layer: Layer, dropout: Dropout | None) -> tuple[Array, Array, Array]:
        """`B×T×H×d` and twice `B×T×G×d`."""
        config, architecture = self.config, self.config.architecture
        counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        widths = [count * config.head_dim for count in counts]
        if architecture.fused:
            whole = self._project("qkv_proj", sum(widths), x, layer, dropout)
            parts = jnp.split(whole, np.cumsum(widths)[:2].tolist(), axis=-1)
        else:
            names = ("q_proj", "k_proj", "v_proj")
            parts = [self._project(name, wide, x, layer, dropout) for name, wide in zip(names, widths, strict=True)]
        if architecture.qk_norm == "width":
            parts[:2] = [self._rms(name, part) for name, part in zip(("q_norm", "k_norm"), parts, strict=False)]
        heads = [part.reshape(*x.shape[:2], count, -1) for part, count in zip(parts, counts, strict=True)]
        if architecture.qk_norm == "head":
            heads[:2] = [self._rms(name, head) for name, head in zip(("q_norm", "k_norm"), heads, strict=False)]
        return heads[0], heads[1], heads[2]

    def _mlp(self, x: Array, layer: Layer, dropout: Dropout | None) -> Array:
        config = self.config
        inner = config.intermediate_size
        if config.architecture.fused:
            gate, up = jnp.split(self._project("gate_up_proj", 2 * inner, x, layer, dropout), 2, axis=-1)
        else:
            gate, up = (self._project(name, inner, x, layer, dropout) for name in ("gate_proj", "up_proj"))
        return self._project("down_proj", x.shape[-1], ACTIVATIONS[config.hidden_act](gate) * up, layer, dropout)


class Decoder(nn.Module):
    """The stack of blocks between embedding and output projection."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, tokens: Array, positions: Array, cache: KVCache | None = None, dropout: Dropout | None = None
    ) -> tuple[Array, KVCache | None]:
        """One pass.

        Args:
          tokens: `B×T` int32.
          positions: `B×T` int32 positions in the sequence; −1 at padding.
          cache: keys and values of earlier tokens; None for a whole sequence at once.
          dropout: masks for the adapter's input; None for off.

        Returns:
          Final hidden states `B×T×D`, normed, and the cache with this call's tokens in it.
        """
        config, architecture = self.config, self.config.architecture
        embed = nn.Embed(config.vocab_size, config.hidden_size, param_dtype=config.dtype, name="embed_tokens")
        hidden = embed(tokens).astype(config.dtype)
        if architecture.scaled_embedding:
            hidden = hidden * jnp.asarray(config.hidden_size**0.5, config.dtype)
        kinds = [rope.angles(positions, config.head_dim) for rope in config.ropes]
        angles = jax.tree.map(lambda *parts: jnp.stack(parts), *kinds) if config.layer_ropes else kinds[0]
        if cache is not None:
            filled = jax.lax.dynamic_update_slice(cache.positions, positions, (0, cache.used))
            cache = cache._replace(positions=filled)
        layers = nn.scan(
            Block,
            variable_axes={"params": 0, "lora": 0, "lora_scale": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=config.num_hidden_layers,
            unroll=config.num_hidden_layers if config.num_hidden_layers <= UNROLLED_LAYERS else 1,
        )(config, name="layers")
        (hidden, cache), _ = layers((hidden, cache), layers_of(config), positions, angles, dropout)
        if cache is not None:
            cache = cache._replace(used=cache.used + tokens.shape[1])
        hidden = RMSNorm(config.rms_norm_eps, config.dtype, architecture.norm_offset, name="norm")(hidden)
        if not config.tie_word_embeddings:
            # Only declared here: the caller multiplies by it, at the positions it needs (`models.head`).
            shape = (config.vocab_size, config.hidden_size)
            self.param("lm_head", nn.initializers.normal(0.02), shape, config.dtype)
        return hidden, cache


@struct.dataclass
class LanguageModel:
    """A decoder with its frozen weights; a pytree whose decoder is static, so that `jit` takes it whole."""

    decoder: Decoder = struct.field(pytree_node=False)
    params: Any

    @property
    def config(self) -> TransformerConfig:
        """Shape and constants of the decoder."""
        return self.decoder.config


def positions_of(lengths: Array, width: int) -> Array:
    """Positions `B×width` of right-padded rows of `lengths` `B`: 0, 1, … and −1 at padding."""
    slots = jnp.arange(width, dtype=jnp.int32)[None]
    return jnp.where(slots < lengths[:, None], slots, -1)
