"""LoRA: a dense layer whose adapter lives in a collection of its own, and the adapter as a pytree.

`params` holds the frozen weights and `lora` the two factors, so a gradient is taken with respect to the
adapter alone, and the base model *is* the same `apply` without the adapter's collections.

Hu et al. 2021, arXiv 2106.09685, section 4.1. Shapes: `L` layers, `B` batch, `T` tokens, `r` rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from star_jax.config import LoraConfig
from star_jax.models.projections import PROJECTION_PATHS, choose_modules
from star_jax.ops.matmul import DropoutMask, OneOf, lora_matmul, merged_matmul
from star_jax.ops.quantization import Kernel, matmul
from star_jax.parallel.parts import multiplied

Array = jax.Array
Factors = Mapping[str, Mapping[str, Mapping[str, Array]]]


class Adapter(NamedTuple):
    """A LoRA adapter.

    Attributes:
      weights: `{"layers": {projection: {"a": L×in×r, "b": L×r×out}}}`, float32; what is trained. Where layers differ
        in rank, r is the largest; what a layer lacks is 0 in both factors, has no gradient, and stays 0.
      scale: `{"layers": {projection: {"scale": L}}}`, alpha / r of each layer; never trained.
    """

    weights: Factors
    scale: Factors

    def collections(self) -> dict[str, Any]:
        """The adapter as the two Linen collections the decoder reads."""
        return {"lora": self.weights, "lora_scale": self.scale}


def with_adapter(params: Any, adapter: Adapter | None) -> dict[str, Any]:
    """Variables of the full model, or of the base model where `adapter` is None."""
    apart = {"kernels": {"layers": params["kernels"]}} if "kernels" in params else {}
    frozen = {name: tree for name, tree in params.items() if name != "kernels"}
    return {"params": frozen} | apart | (adapter.collections() if adapter is not None else {})


class LoraDense(nn.Module):
    """A projection: x W, plus scale · (dropout(x) A) B where an adapter is present.

    Attributes:
      features: output width.
      dtype: type of the frozen kernel and of the product.
      use_bias: whether a frozen bias is added.
    """

    features: int
    dtype: Any
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: DropoutMask | None) -> Array:
        """Projects `x` `B×T×in` to `B×T×features`; `mask` is the adapter's dropout mask, None for none."""
        kernel: Kernel
        if self.has_variable("params", "kernel"):
            kernel = self.get_variable("params", "kernel")  # an array, or a quantised kernel
            if self.has_variable("kernels", "kernel"):
                kernel = OneOf(self.get_variable("kernels", "kernel"), kernel)
        else:
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features), self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.dtype) if self.use_bias else None
        if self.has_variable("lora", "a"):
            a: Array = self.get_variable("lora", "a")
            b: Array = self.get_variable("lora", "b")
            y = multiplied(_project, (kernel, a, b), x, self.get_variable("lora_scale", "scale"), mask)
        else:
            y = multiplied(_plain, (kernel,), x)
        return y if bias is None else y + bias


def _plain(weights: tuple[Kernel], x: Array) -> Array:
    return matmul(x, *weights)


def _project(weights: tuple[Kernel, Array, Array], x: Array, scale: Array, mask: DropoutMask | None) -> Array:
    """x W + scale · (dropout(x) A) B; as x (W + scale · A B) where the adapter is one matrix and that is less work."""
    kernel, a, b = weights
    if mask is not None and mask.entries.ndim == 1:
        a, mask = mask.of(a.T).T, None
    if mask is None and isinstance(kernel, jax.Array | OneOf) and _merging_pays(x, kernel):
        return merged_matmul(x, kernel, a, b, scale)
    if isinstance(kernel, jax.Array | OneOf):
        return lora_matmul(x, mask, kernel, a, b, scale)
    # Dequantised again in the backward pass, so that no wide copy of the kernel is kept.
    dequantized = jax.checkpoint(lambda x, mask, kernel, *rest: lora_matmul(x, mask, kernel.dequantize(x.dtype), *rest))
    return dequantized(x, mask, kernel, a, b, scale)


def _merging_pays(x: Array, kernel: Array | OneOf) -> bool:
    """Whether A B costs less than A and B at every token. Not in bfloat16, which would round small changes away."""
    tokens, (fan_in, out) = x.size // x.shape[-1], kernel.shape
    return x.dtype == jnp.float32 and tokens * (fan_in + out) > fan_in * out


def init_adapter(key: Array, params: Any, config: LoraConfig) -> Adapter:
    """A fresh adapter: random A, B = 0, so that ΔW = 0.

    Args:
      key: PRNG key.
      params: the decoder's parameters, for the widths.
      config: rank, scale, targets and A's distribution: N(0, 1/r), or Kaiming-uniform with a = √5, that
        is U(−1/√in, 1/√in), which is PEFT's default. With rsLoRA the scale is alpha / √r (Kalajdzievski 2023,
        arXiv 2312.03732).

    Returns:
      The adapter, A `L×I×r` and B `L×r×O`, float32; its scales are 0 in layers that are no target.

    Raises:
      ConfigError: a target matches no layer.
    """
    kernels = {name: layer["kernel"] for name, layer in params["layers"].items() if "kernel" in layer}
    depth = next(iter(kernels.values())).shape[0]
    chosen = choose_modules(depth, [name for name in PROJECTION_PATHS if name in kernels], config.targets)
    strength = config.alpha / (config.rank**0.5 if config.rslora else config.rank)
    weights: dict[str, dict[str, Array]] = {}
    scale: dict[str, dict[str, Array]] = {}
    for name, layers in chosen.items():
        _, width, features = kernels[name].shape
        key, a_key = jax.random.split(key)
        shape = (depth, width, config.rank)
        if config.init == "gaussian":
            a = jax.random.normal(a_key, shape) / jnp.sqrt(config.rank)
        else:
            a = jax.random.uniform(a_key, shape, minval=-1, maxval=1) / jnp.sqrt(width)
        here = jnp.asarray(layers)
        weights[name] = {
            "a": jnp.where(here[:, None, None], a, 0),
            "b": jnp.zeros((depth, config.rank, features)),
        }
        # Of type float32 for good, as that of a folder is: JAX would round a plain number to the type it meets.
        scale[name] = {"scale": jnp.where(here, jnp.float32(strength), 0)}
    return Adapter({"layers": weights}, {"layers": scale})


def b_square(weights: Factors) -> Array:
    """‖B‖², summed over all layers and projections; a float32 scalar."""
    return sum((jnp.sum(jnp.square(factors["b"])) for factors in weights["layers"].values()), start=jnp.zeros(()))


def b_norm(adapter: Adapter) -> Array:
    """‖B‖ of all layers and projections, float32: the strength of the adapter, which L2 on B holds down."""
    return jnp.sqrt(b_square(adapter.weights))
