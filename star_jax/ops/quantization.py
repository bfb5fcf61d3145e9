"""Frozen kernels in 8 or 4 bits, dequantised layer by layer as they are multiplied.

Both are made once, when a checkpoint is loaded. The adapter on top keeps its own type (QLoRA, Dettmers et al. 2023,
arXiv 2305.14314). Blocks and scales run along a kernel's input, as they do along a row of the checkpoint's matrix.

Shapes: `I` input width, `O` output width, `I'` input width rounded up to a multiple of `BLOCK`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct

from star_jax.ops.matmul import OneOf, product

Array = jax.Array
Quantization = Literal["none", "int8", "nf4"]

BLOCK = 64
"""Entries that share a scale in NF4."""

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The sixteen values of 4-bit NormalFloat: quantiles of a standard normal, scaled to [-1, 1] (QLoRA, appendix E)."""


@struct.dataclass
class Int8Kernel:
    """A kernel as 8-bit integers, one scale an output (Dettmers et al. 2022, arXiv 2208.07339, section 2.1).

    Attributes:
      values: `…×I×O` int8.
      scale: `…×O` float32; the largest magnitude of the column over 127.
    """

    values: Array
    scale: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel, `…×I×O`."""
        return self.values.shape

    def dequantize(self, dtype: Any) -> Array:
        """The kernel `…×I×O`, rounded as it is."""
        return (self.values * self.scale[..., None, :]).astype(dtype)


@struct.dataclass
class NF4Kernel:
    """A kernel in 4-bit NormalFloat, one scale a block.

    Attributes:
      codes: `…×I'/2×O` uint8; two neighbours along the input, the first in the upper four bits.
      scale: `…×I'/BLOCK×O` float32; the largest magnitude of the block.
      width: I.
    """

    codes: Array
    scale: Array
    width: int = struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel, `…×I×O`."""
        return (*self.codes.shape[:-2], self.width, self.codes.shape[-1])

    def dequantize(self, dtype: Any) -> Array:
        """The kernel `…×I×O`, rounded as it is."""
        *stacked, pairs, features = self.codes.shape
        codes = jnp.stack([self.codes >> 4, self.codes & 15], axis=-2)
        blocks = jnp.asarray(NF4_LEVELS)[codes].reshape(*stacked, 2 * pairs // BLOCK, BLOCK, features)
        whole = (blocks * self.scale[..., None, :]).reshape(*stacked, 2 * pairs, features)
        return whole[..., : self.width, :].astype(dtype)


Kernel = Array | OneOf | Int8Kernel | NF4Kernel


def quantize(kernel: Array, kind: Quantization) -> Kernel:
    """A kernel `…×I×O` in fewer bits; `none` returns it as it is."""
    if kind == "none":
        return kernel
    return _to_int8(kernel) if kind == "int8" else _to_nf4(kernel)


def matmul(x: Array, kernel: Kernel) -> Array:
    """`x` `…×I` times a kernel `I×O`, in `x`'s type.

    A quantised kernel is dequantised again in the backward pass, so that no wide copy of it is kept.
    """
    if isinstance(kernel, Int8Kernel | NF4Kernel):
        return jax.checkpoint(lambda x, kernel: product(x, kernel.dequantize(x.dtype)))(x, kernel)
    return product(x, kernel)


def projection_bytes(params: Any) -> int:
    """Bytes of all projection kernels of a decoder's parameters."""
    kernels = [layer["kernel"] for layer in params["layers"].values() if "kernel" in layer]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(kernels))


@jax.jit
def _to_int8(kernel: Array) -> Int8Kernel:
    wide = kernel.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-2) / 127
    values = jnp.round(wide / jnp.where(scale > 0, scale, 1)[..., None, :]).astype(jnp.int8)
    return Int8Kernel(values, scale)


@jax.jit
def _to_nf4(kernel: Array) -> NF4Kernel:
    *stacked, width, features = kernel.shape
    missing = -width % BLOCK
    padding = [(0, 0)] * len(stacked) + [(0, missing), (0, 0)]
    blocks = jnp.pad(kernel.astype(jnp.float32), padding).reshape(*stacked, -1, BLOCK, features)
    scale = jnp.max(jnp.abs(blocks), axis=-2)
    relative = blocks / jnp.where(scale > 0, scale, 1)[..., None, :]
    # The nearest level: how many midpoints between neighbours lie below. A sum fuses into one loop over the kernel;
    # a binary search would hold several integers an entry.
    middles = [(low + high) / 2 for low, high in pairwise(NF4_LEVELS)]
    codes = sum(((relative > middle).astype(jnp.uint8) for middle in middles), start=jnp.uint8(0))
    pairs = codes.reshape(*stacked, (width + missing) // 2, 2, features)
    return NF4Kernel(pairs[..., 0, :] << 4 | pairs[..., 1, :], scale, width)
