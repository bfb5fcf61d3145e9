"""Products of the decoder: accumulated in float32 whatever the type of their factors, forwards and backwards.

Said explicitly, because a CPU is twice as quick at bfloat16 products that leave it float32 sums, and because the
products of a backward pass would otherwise take the type of the sums.

Shapes: `I` input width, `O` output width, `r` rank.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.custom_vjp
def product(x: Array, kernel: Array) -> Array:
    """`x` `…×I` times a kernel `I×O` of the same type, in that type."""
    return _dot(x, kernel)


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _dot(x, kernel), (x, kernel)


def _product_backward(saved: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _dot(slope, kernel.T), _over_tokens(x, slope).astype(kernel.dtype)


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def adapted_product(x: Array, dropped: Array, kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    """x W + scale · (x' A) B, rounded to the type of `x` once.

    Args:
      x: `…×I`.
      dropped: x', `…×I`, what the adapter reads.
      kernel: W, `I×O`, of the type of `x`.
      a: `I×r` float32; rounded to the type of `x`, its gradient is not.
      b: `r×O` float32, likewise.
      scale: scalar float32, never rounded; it has no gradient.
    """
    return _adapted_forward(x, dropped, kernel, a, b, scale)[0]


def _adapted_forward(
    x: Array, dropped: Array, kernel: Array, a: Array, b: Array, scale: Array
) -> tuple[Array, tuple[Array, ...]]:
    low = _dot(dropped, a.astype(x.dtype))
    sums = _sums(x, kernel) + scale * _sums(low, b.astype(x.dtype))
    return sums.astype(x.dtype), (x, dropped, low, kernel, a, b, scale)


def _adapted_backward(saved: tuple[Array, ...], slope: Array) -> tuple[Array, ...]:
    x, dropped, low, kernel, a, b, scale = saved
    scaled = (slope * scale).astype(x.dtype)
    inner = _dot(scaled, b.T.astype(x.dtype))
    slope_a, slope_b = _over_tokens(dropped, inner).astype(a.dtype), _over_tokens(low, scaled).astype(b.dtype)
    # That of the kernel is dropped by the compiler where the kernel is frozen.
    slope_kernel = _over_tokens(x, slope).astype(kernel.dtype)
    outer = _dot(inner, a.T.astype(x.dtype))
    return _dot(slope, kernel.T), outer, slope_kernel, slope_a, slope_b, jnp.zeros_like(scale)


adapted_product.defvjp(_adapted_forward, _adapted_backward)


@jax.custom_vjp
def folded_matmul(x: Array, kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    """x (W + scale · A B), float32: one product a token instead of three.

    The gradient of A and B goes through their rank, not through that of W; W is taken for frozen where nobody asks for
    its gradient. Neither the sum nor x A is kept for it.

    Args:
      x: `…×I`.
      kernel: W, `I×O`.
      a: `I×r`.
      b: `r×O`.
      scale: scalar; it has no gradient.
    """
    return x @ fold(kernel, a, b, scale)


def fold(kernel: Array, a: Array, b: Array, scale: Array) -> Array:
    """W + scale · A B, `…×I×O`, in W's type; `scale` `…`, the others with the same leading axes."""
    return kernel + ((a * scale[..., None, None]) @ b).astype(kernel.dtype)


_Saved = tuple[Array, Array, Array, Array, Array]


def _folded_forward(x: Array, kernel: Array, a: Array, b: Array, scale: Array) -> tuple[Array, _Saved]:
    return x @ fold(kernel, a, b, scale), (x, kernel, a, b, scale)


def _folded_backward(saved: _Saved, slope: Array) -> tuple[Array, Array, Array, Array, Array]:
    x, kernel, a, b, scale = saved
    low = (slope @ b.T) * scale
    slope_a, slope_b = _over_tokens(x, low), _over_tokens((x @ a) * scale, slope)
    # That of the kernel is dropped by the compiler where the kernel is frozen.
    return slope @ fold(kernel, a, b, scale).T, _over_tokens(x, slope), slope_a, slope_b, jnp.zeros_like(scale)


folded_matmul.defvjp(_folded_forward, _folded_backward)


def _sums(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _dot(left: Array, right: Array) -> Array:
    return _sums(left, right).astype(left.dtype)


def _over_tokens(x: Array, slope: Array) -> Array:
    """xᵀ · slope over all leading axes, `I×O` float32."""
    x, slope = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    return jnp.einsum("mi,mo->io", x, slope, preferred_element_type=jnp.float32)
