"""The decoder: Llama's architecture in Linen, one block scanned over stacked parameters.

Pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU. A call returns hidden states; the
output projection is applied by the caller, to the positions it needs (`models.head`).

Shapes: `B` batch, `T` tokens, `S` cache slots, `D` model width, `V` vocabulary, `L` layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from star_jax.config import ConfigError
from star_jax.models.attention import attend, rotary_angles, rotate
from star_jax.models.lora import Dropout, LoraDense

Array = jax.Array

UNROLLED_LAYERS = 4
"""Up to this many layers the scan is written out: a training step of the embedded model takes a quarter less time."""


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and constants of a decoder; the names are those of a Hugging Face `config.json`."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    dtype: str = "float32"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any], dtype: str = "float32") -> TransformerConfig:
        """Reads a Hugging Face config.

        Raises:
          ConfigError: the model is of another family, or a field asks for mathematics this decoder does
            not do; the message names the field.
        """
        if raw.get("model_type") != "llama":
            raise ConfigError(f"config.json: model_type is {raw.get('model_type')!r}; this decoder reads llama")
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        unsupported = {
            "rope_type": kind != "default",
            "hidden_act": raw.get("hidden_act", "silu") != "silu",
            "attention_bias": bool(raw.get("attention_bias")),
            "mlp_bias": bool(raw.get("mlp_bias")),
        }
        refused = [name for name, flag in unsupported.items() if flag]
        if refused:
            raise ConfigError(f"config.json: {', '.join(refused)} asks for mathematics this decoder does not do")
        heads = raw["num_attention_heads"]
        return cls(
            vocab_size=raw["vocab_size"],
            hidden_size=raw["hidden_size"],
            intermediate_size=raw["intermediate_size"],
            num_hidden_layers=raw["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
            rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            max_position_embeddings=raw.get("max_position_embeddings", 2048),
            dtype=dtype,
        )


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


def empty_cache(config: TransformerConfig, batch: int, slots: int) -> KVCache:
    """A cache of `slots` free slots for `batch` rows."""
    shape = (config.num_hidden_layers, batch, slots, config.num_key_value_heads, config.head_dim)
    zeros = jnp.zeros(shape, config.dtype)
    return KVCache(zeros, zeros, jnp.full((batch, slots), -1, jnp.int32), jnp.zeros((), jnp.int32))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (Zhang & Sennrich 2019, equation 4)."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.dtype)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return wide.astype(self.dtype) * scale


class Block(nn.Module):
    """One layer. The carry is the residual stream and, when decoding, the whole cache, updated in place."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Array, KVCache | None],
        layer: Array,
        positions: Array,
        angles: tuple[Array, Array],
        dropout: Dropout | None,
    ) -> tuple[tuple[Array, KVCache | None], None]:
        """Maps (`B×T×D`, cache) to the same; `layer` is its index, `positions` `B×T`."""
        config = self.config
        hidden, cache = carry
        batch, length, width = hidden.shape

        def project(name: str, features: int, x: Array) -> Array:
            return LoraDense(features, config.dtype, name=name)(x, layer, dropout)

        def heads(name: str, count: int, x: Array) -> Array:
            return project(name, count * config.head_dim, x).reshape(batch, length, count, config.head_dim)

        x = RMSNorm(config.rms_norm_eps, config.dtype, name="input_norm")(hidden)
        query = rotate(heads("q_proj", config.num_attention_heads, x), angles)
        key = rotate(heads("k_proj", config.num_key_value_heads, x), angles)
        value = heads("v_proj", config.num_key_value_heads, x)
        if cache is None:
            mixed = attend(query, key, value, positions, positions)
        else:
            start = (layer, 0, cache.used, 0, 0)
            keys = jax.lax.dynamic_update_slice(cache.keys, key[None], start)
            values = jax.lax.dynamic_update_slice(cache.values, value[None], start)
            cache = cache._replace(keys=keys, values=values)
            mixed = attend(query, keys[layer], values[layer], positions, cache.positions)
        hidden = hidden + project("o_proj", width, mixed.reshape(batch, length, -1))

        x = RMSNorm(config.rms_norm_eps, config.dtype, name="post_attention_norm")(hidden)
        gate = nn.silu(project("gate_proj", config.intermediate_size, x))
        up = project("up_proj", config.intermediate_size, x)
        return (hidden + project("down_proj", width, gate * up), cache), None


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
        config = self.config
        embed = nn.Embed(config.vocab_size, config.hidden_size, param_dtype=config.dtype, name="embed_tokens")
        hidden = embed(tokens).astype(config.dtype)
        angles = rotary_angles(positions, config.head_dim, config.rope_theta)
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
        (hidden, cache), _ = layers((hidden, cache), jnp.arange(config.num_hidden_layers), positions, angles, dropout)
        if cache is not None:
            cache = cache._replace(used=cache.used + tokens.shape[1])
        hidden = RMSNorm(config.rms_norm_eps, config.dtype, name="norm")(hidden)
        if not config.tie_word_embeddings:
            # Only declared here: the caller multiplies by it, at the positions it needs (`models.head`).
            shape = (config.vocab_size, config.hidden_size)
            self.param("lm_head", nn.initializers.normal(0.02), shape, config.dtype)
        return hidden, cache


def positions_of(lengths: Array, width: int) -> Array:
    """Positions `B×width` of right-padded rows of `lengths` `B`: 0, 1, … and −1 at padding."""
    slots = jnp.arange(width, dtype=jnp.int32)[None]
    return jnp.where(slots < lengths[:, None], slots, -1)
