"""What a token goes through between the products: norms and the gate's activations, in float32 whatever the type.

A backward pass keeps what goes in and computes the rest again: the steps in float32 are several times as large as the
model's bfloat16, and quicker computed than read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

Array = jax.Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(nn.gelu, approximate=True),
}
"""Activations of the gate, by their Hugging Face names."""


@partial(jax.checkpoint, static_argnums=0)
def gated(activation: str, gate: Array, up: Array) -> Array:
    """The gate `…×I`, activated, times `up` `…×I`; `activation` is one of `ACTIVATIONS`."""
    # Rounded once, at the end: rounding after each of its steps would take a CPU longer than the steps.
    return (ACTIVATIONS[activation](gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (Zhang & Sennrich 2019, equation 4).

    Attributes:
      epsilon: added to the mean square.
      dtype: of the weight and of the result.
      offset: added to the weight before it multiplies.
      gain: multiplies what comes out.
    """

    epsilon: float
    dtype: Any
    offset: float = 0.0
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalises the last axis."""
        start = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", start, (x.shape[-1],), self.dtype).astype(jnp.float32) + self.offset
        scale = scale if self.gain == 1.0 else scale * self.gain
        return _normed(self.epsilon, x, scale).astype(self.dtype)


@partial(jax.checkpoint, static_argnums=0)
def _normed(epsilon: float, x: Array, scale: Array) -> Array:
    """`RMSNorm` in float32."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon) * scale
