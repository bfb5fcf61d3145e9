"""Products of the decoder: accumulated in float32 whatever the type of their factors, forwards and backwards.

Said explicitly, because a CPU is twice as quick at bfloat16 products that leave it float32 sums, and because the
products of a backward pass would otherwise take the type of the sums.

Factors of float32 are multiplied as such: where `jax_default_matmul_precision` says nothing, accelerators would round
them to fewer bits, and a small adapter away. Where it does say something, that holds.

Shapes: `I` input width, `O` output width, `r` rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class DropoutMask:
    """The dropout mask of an input.

    Attributes:
      entries: what is not dropped: `I`, `B×1×I` or `B×T×I` bool.
      scale: what the entries that are kept are multiplied by.
    """

    entries: Array
    scale: float = struct.field(pytree_node=False)

    def of(self, x: Array) -> Array:
        """`x` `…×I` without what is dropped, rounded once."""
        return jnp.where(self.entries, x.astype(jnp.float32) * self.scale, 0).astype(x.dtype)


@struct.dataclass
class OneOf:
    """One of several frozen kernels, each an array of its own, which a number picks while a program runs.

    A loop over layers whose kernels are one stacked array copies a layer's part of it before every product, on a CPU.

    Attributes:
      kernels: `I×O` each.
      number: of the one that is meant, int32 scalar.
    """

    kernels: tuple[Array, ...]
    number: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel, `I×O`."""
        return self.kernels[0].shape

    def switch(self, function: Callable[[Array, Array], Array], other: Array) -> Array:
        """`function(kernel, other)`, written out for each of the kernels."""

        def of(number: int, several: OneOf, other: Array) -> Array:
            return function(several.kernels[number], other)

        ways = [partial(of, number) for number in range(len(self.kernels))]
        found: Array = jax.lax.switch(self.number, ways, self, other)
        return found


@jax.custom_vjp
def product(x: Array, kernel: Array | OneOf) -> Array:
    """`x` `…×I` times a kernel `I×O` of the same type, in that type; one of several has no gradient."""
    return _through(x, kernel).astype(x.dtype)


def _product_forward(x: Array, kernel: Array | OneOf) -> tuple[Array, tuple[Array, Array | OneOf]]:
    return product(x, kernel), (x, kernel)


def _product_backward(saved: tuple[Array, Array | OneOf], slope: Array) -> tuple[Array, Array | None]:
    x, kernel = saved
    return _back(slope, kernel).astype(slope.dtype), _slope_of_kernel(x, kernel, slope)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def lora_matmul(x: Array, mask: DropoutMask | None, kernel: Array | OneOf, a: Array, b: Array, scale: Array) -> Array:
    """x W + scale · (x' A) B, whose sum is rounded to the type of `x` once; x' A is rounded to it before.

    The input is kept for the gradient, and masked again: masks are smaller than what they leave, and projections that
    read the same share both.

    Args:
      x: `…×I`.
      mask: the mask that makes x' of x; None for none.
      kernel: W, `I×O`, of the type of `x`; one of several has no gradient.
      a: `I×r` float32; rounded to the type of `x`, its gradient is not.
      b: `r×O` float32, likewise.
      scale: scalar float32, never rounded, nor is its gradient.
    """
    return _lora_forward(x, mask, kernel, a, b, scale)[0]


_Adapted = tuple[Array, DropoutMask | None, Array, Array | OneOf, Array, Array, Array]


def _lora_forward(
    x: Array, mask: DropoutMask | None, kernel: Array | OneOf, a: Array, b: Array, scale: Array
) -> tuple[Array, _Adapted]:
    low = _dot(_masked(x, mask), a.astype(x.dtype))
    sums = _through(x, kernel) + scale * _sums(low, b.astype(x.dtype))
    return sums.astype(x.dtype), (x, mask, low, kernel, a, b, scale)


def _lora_backward(saved: _Adapted, slope: Array) -> tuple[Array, None, Array | None, Array, Array, Array]:
    x, mask, low, kernel, a, b, scale = saved
    inner = (_sums(slope, b.T.astype(x.dtype)) * scale).astype(x.dtype)
    slope_x = _back(slope, kernel) + _masked(_sums(inner, a.T.astype(x.dtype)), mask)
    slope_a, outer = _over_tokens(_masked(x, mask), inner), _over_tokens(low, slope)
    slope_scale = jnp.sum(outer * b).astype(scale.dtype)
    return (
        slope_x.astype(x.dtype),
        None,
        _slope_of_kernel(x, kernel, slope),
        slope_a.astype(a.dtype),
        (scale * outer).astype(b.dtype),
        slope_scale,
    )


lora_matmul.defvjp(_lora_forward, _lora_backward)


@jax.custom_vjp
def merged_matmul(x: Array, kernel: Array | OneOf, a: Array, b: Array, scale: Array) -> Array:
    """x (W + scale · A B), float32: one product a token instead of three.

    The gradient of A and B goes through their rank, not through that of W; W is taken for frozen where nobody asks for
    its gradient. Neither the sum nor x A is kept for it.

    Args:
      x: `…×I`.
      kernel: W, `I×O`.
      a: `I×r`.
      b: `r×O`.
      scale: scalar.
    """
    return _sums(x, merged_kernel(kernel, a, b, scale))


def merged_kernel(kernel: Array | OneOf, a: Array, b: Array, scale: Array) -> Array:
    """W + scale · A B, `…×I×O`, in W's type; `scale` `…`, the others with the same leading axes."""
    change = _sums(a * scale[..., None, None], b)
    if isinstance(kernel, OneOf):
        return kernel.switch(lambda one, change: one + change.astype(one.dtype), change)
    return kernel + change.astype(kernel.dtype)


_Saved = tuple[Array, Array | OneOf, Array, Array, Array]


def _merged_forward(x: Array, kernel: Array | OneOf, a: Array, b: Array, scale: Array) -> tuple[Array, _Saved]:
    return _sums(x, merged_kernel(kernel, a, b, scale)), (x, kernel, a, b, scale)


def _merged_backward(saved: _Saved, slope: Array) -> tuple[Array, Array | None, Array, Array, Array]:
    x, kernel, a, b, scale = saved
    slope_a, outer = _over_tokens(x, _sums(slope, b.T) * scale), _over_tokens(_sums(x, a), slope)
    slope_x = _sums(slope, merged_kernel(kernel, a, b, scale).T)
    return slope_x, _slope_of_kernel(x, kernel, slope), slope_a, scale * outer, jnp.sum(outer * b)


merged_matmul.defvjp(_merged_forward, _merged_backward)


def _masked(x: Array, mask: DropoutMask | None) -> Array:
    return x if mask is None else mask.of(x)


def _through(x: Array, kernel: Array | OneOf) -> Array:
    """x W, `…×O` float32."""
    if isinstance(kernel, OneOf):
        return kernel.switch(lambda one, x: _sums(x, one), x)
    return _sums(x, kernel)


def _back(slope: Array, kernel: Array | OneOf) -> Array:
    """slope Wᵀ, `…×I` float32."""
    if isinstance(kernel, OneOf):
        return kernel.switch(lambda one, slope: _sums(slope, one.T), slope)
    return _sums(slope, kernel.T)


def _slope_of_kernel(x: Array, kernel: Array | OneOf, slope: Array) -> Array | None:
    """That of a frozen one is dropped by the compiler; one of several is always frozen."""
    return None if isinstance(kernel, OneOf) else _over_tokens(x, slope).astype(kernel.dtype)


def _sums(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=_precision(left), preferred_element_type=jnp.float32)


def _dot(left: Array, right: Array) -> Array:
    return _sums(left, right).astype(left.dtype)


def _over_tokens(x: Array, slope: Array) -> Array:
    """xᵀ · slope over all leading axes, `I×O` float32."""
    x, slope = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    return jnp.einsum("mi,mo->io", x, slope, precision=_precision(x), preferred_element_type=jnp.float32)


def _precision(x: Array) -> jax.lax.Precision | None:
    """That of products of an array of this type; None for JAX's default."""
    unsaid = jax.config.jax_default_matmul_precision is None  # type: ignore[attr-defined]
    return jax.lax.Precision.HIGHEST if unsaid and x.dtype == jnp.float32 else None
