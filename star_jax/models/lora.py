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
from flax import struct

from star_jax.config import ConfigError, LoraConfig
from star_jax.models.modules import PROJECTION_PATHS, choose_modules
from star_jax.models.quantization import Kernel, matmul

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
    return {"params": params} | (adapter.collections() if adapter is not None else {})


_DRAWS = 1 << 16

_SITES = {
    **{"q_proj": 0, "k_proj": 1, "v_proj": 2, "o_proj": 3, "gate_proj": 4, "up_proj": 5, "down_proj": 6},
    **{"qkv_proj": 0, "gate_up_proj": 4},
}
"""Projection -> its number within a layer, which picks its dropout masks; no block has two of a number."""

_SITES_A_LAYER = 7


def row_keys(key: Array, index: Array) -> Array:
    """One PRNG key a row, `B`, from the row's number `B`, so that it does not depend on the batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


@struct.dataclass
class Dropout:
    """Dropout on the input of A, an explicit argument of a forward pass; None in its place switches it off.

    Attributes:
      keys: `B` PRNG keys, one a row, so that a row's masks do not depend on the batch it rides in.
      rate: probability that an entry is dropped, > 0; rounded to a multiple of 2⁻¹⁶.
      mode: `tied` draws one mask a row, shared by its tokens, which makes the pass one sample
        A_k = diag(m_k) A / (1 - rate) of A's weights (Gal & Ghahramani 2016, arXiv 1512.05287);
        `per_token` draws one a token, as PEFT does in training.
    """

    keys: Array
    rate: float = struct.field(pytree_node=False)
    mode: str = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if self.mode not in ("tied", "per_token"):
            raise ConfigError(f"dropout mode is {self.mode!r}; choose tied or per_token, or pass None for off")
        if not 1 / _DRAWS <= self.rate <= 1 - 1 / _DRAWS:
            raise ConfigError(f"dropout was asked for at rate {self.rate}; set lora.dropout in (0, 1) or switch it off")

    def __call__(self, x: Array, site: Array) -> Array:
        """Drops entries of `x` `B×T×D`; `site` numbers the layer and projection."""
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(self.keys, site)
        shape = (1, x.shape[-1]) if self.mode == "tied" else x.shape[1:]
        # Sixteen random bits an entry instead of a float's thirty-two: drawing masks is what dropout costs.
        kept = round((1 - self.rate) * _DRAWS)
        bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint16))(keys)
        return jnp.where(bits < kept, x * (_DRAWS / kept), 0)


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
    def __call__(self, x: Array, layer: Array, dropout: Dropout | None) -> Array:
        """Projects `x` `B×T×in` to `B×T×features`."""
        kernel: Kernel
        if self.has_variable("params", "kernel"):
            kernel = self.get_variable("params", "kernel")  # an array, or a quantised kernel
        else:
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features), self.dtype)
        y = matmul(x, kernel)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,), self.dtype)
        if not self.has_variable("lora", "a"):
            return y
        factors: dict[str, Array] = {name: self.get_variable("lora", name).astype(self.dtype) for name in ("a", "b")}
        scale: Array = self.get_variable("lora_scale", "scale")
        if dropout is not None:
            assert self.name is not None
            x = dropout(x, layer * _SITES_A_LAYER + _SITES[self.name])
        # The scale stays float32: rounded to bfloat16, 2/3 would be off by a fifth of a percent everywhere.
        return y + (((x @ factors["a"]) @ factors["b"]) * scale).astype(self.dtype)


def init_adapter(key: Array, params: Any, config: LoraConfig) -> Adapter:
    """A fresh adapter: random A, B = 0, so that ΔW = 0.

    Args:
      key: PRNG key.
      params: the decoder's parameters, for the widths.
      config: rank, scale, targets and A's distribution: N(0, 1/r), or Kaiming-uniform with a = √5, that
        is U(−1/√in, 1/√in), which is PEFT's default. With rsLoRA the scale is alpha / √r (Kalajdzievski 2023,
        arXiv 2312.03732).

    Returns:
      The adapter, float32.

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
        scale[name] = {"scale": jnp.where(here, strength, 0.0)}
    return Adapter({"layers": weights}, {"layers": scale})


def b_norm(adapter: Adapter) -> Array:
    """Euclidean norm of all B factors together, the strength of the adapter that L2 on B holds down."""
    squares = [jnp.sum(jnp.square(factors["b"])) for factors in adapter.weights["layers"].values()]
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))
