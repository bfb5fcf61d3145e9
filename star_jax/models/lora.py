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
import numpy as np
from flax import linen as nn
from flax import struct

from star_jax.config import LEAST_DROPOUT, ConfigError, DropoutMode, LoraConfig
from star_jax.models.modules import PROJECTION_PATHS, choose_modules
from star_jax.models.products import Kept, adapted_product, folded_matmul
from star_jax.models.quantization import Kernel, matmul
from star_jax.models.ragged import Line
from star_jax.models.threefry import threefry

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


_SITES = {"qkv_proj": 0, "o_proj": 1, "gate_up_proj": 2, "down_proj": 3}
"""What a layer's projections read -> its number, which picks its dropout masks. Projections that read the same share
them, as they share their input."""


def row_keys(key: Array, index: Array) -> Array:
    """One PRNG key a row, `B`, from the row's number `B`, so that it does not depend on the batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


@struct.dataclass
class Dropout:
    """Dropout on the input of A, an explicit argument of a forward pass; None in its place switches it off.

    Attributes:
      keys: `B` PRNG keys, one a row, so that a row's masks do not depend on the batch it rides in; a single key, a
        scalar, in mode `shared`.
      rate: probability that an entry is dropped, > 0.
      mode: `shared` draws one mask for all rows, which makes the pass one sample A_k = diag(m_k) A / (1 - rate) of A's
        weights (Gal & Ghahramani 2016, arXiv 1506.02142); `tied` draws one a row, shared by its tokens, a sample of
        the weights for each row (arXiv 1512.05287); `per_token` draws one a token, as PEFT does in training.
    """

    keys: Array
    rate: float = struct.field(pytree_node=False)
    mode: DropoutMode = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if self.mode not in ("shared", "tied", "per_token"):
            raise ConfigError(f"dropout mode is {self.mode!r}; choose shared, tied or per_token, or pass None for off")
        if not LEAST_DROPOUT <= self.rate <= 1 - LEAST_DROPOUT:
            raise ConfigError(
                f"dropout was asked for at rate {self.rate}; set lora.dropout between {LEAST_DROPOUT} and "
                f"{1 - LEAST_DROPOUT}, or switch it off"
            )


def draw(
    dropout: Dropout | None, layer: Array | int, projection: str, x: Array, line: Line | None = None
) -> Kept | None:
    """The mask of what a projection reads.

    Args:
      dropout: None for off.
      layer: number of the layer.
      projection: its name; a fused one stands for its parts.
      x: `B×T×D`, or `1×M×D` where `line` says whose tokens these are. A token's mask is the same either way.

    Raises:
      ValueError: there is not one key a row, or not a single one in mode `shared`.
    """
    if dropout is None:
        return None
    _require_keys(dropout, x.shape[0] if line is None else line.lengths.shape[0])
    site = layer * len(_SITES) + _SITES[projection]
    below, columns = np.uint32(round((1 - dropout.rate) * 2**32)), jnp.arange(x.shape[-1], dtype=jnp.uint32)

    def words(key: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, site), (2,), jnp.uint32)

    def mask(words: Array, token: Array | int) -> Array:
        """`…×D` for words `…×2` and tokens `…`."""
        place = jnp.asarray(token, jnp.uint32)[..., None]
        return threefry((words[..., :1], words[..., 1:]), (place, columns))[0] < below

    if dropout.mode == "shared":
        return Kept(mask(words(dropout.keys), 0), 1 / (1 - dropout.rate))
    rows = jax.vmap(words)(dropout.keys)
    if dropout.mode == "tied":
        entries = mask(rows, 0)
        entries = entries[:, None] if line is None else entries[line.rows][None]
    elif line is None:
        entries = mask(rows[:, None], jnp.arange(x.shape[1]))
    else:
        entries = mask(rows[line.rows], line.positions)[None]
    return Kept(entries, 1 / (1 - dropout.rate))


def _require_keys(dropout: Dropout, rows: int) -> None:
    shape = () if dropout.mode == "shared" else (rows,)
    if dropout.keys.shape != shape or not jnp.issubdtype(dropout.keys.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"dropout in mode {dropout.mode} takes {f'{rows} PRNG keys, one a row' if shape else 'a single PRNG key'}, "
            f"as jax.random.key makes them, and got {dropout.keys.dtype}{list(dropout.keys.shape)}"
        )


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
    def __call__(self, x: Array, kept: Kept | None) -> Array:
        """Projects `x` `B×T×in` to `B×T×features`; `kept` is the adapter's dropout mask, None for none."""
        kernel: Kernel
        if self.has_variable("params", "kernel"):
            kernel = self.get_variable("params", "kernel")  # an array, or a quantised kernel
        else:
            kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features), self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.dtype) if self.use_bias else None
        if self.has_variable("lora", "a"):
            a: Array = self.get_variable("lora", "a")
            b: Array = self.get_variable("lora", "b")
            y = _adapted(x, kernel, a, b, self.get_variable("lora_scale", "scale"), kept)
        else:
            y = matmul(x, kernel)
        return y if bias is None else y + bias


def _adapted(x: Array, kernel: Kernel, a: Array, b: Array, scale: Array, kept: Kept | None) -> Array:
    """x W + scale · (dropout(x) A) B; as x (W + scale · A B) where the adapter is one matrix and that is less work."""
    if kept is not None and kept.entries.ndim == 1:
        a, kept = kept.of(a.T).T, None
    if kept is None and isinstance(kernel, jax.Array) and _folding_pays(x, kernel):
        return folded_matmul(x, kernel, a, b, scale)
    if isinstance(kernel, jax.Array):
        return adapted_product(x, kept, kernel, a, b, scale)
    # Widened again in the backward pass, so that no wide copy of the kernel is kept.
    widened = jax.checkpoint(lambda x, kept, kernel, *rest: adapted_product(x, kept, kernel.widened(x.dtype), *rest))
    return widened(x, kept, kernel, a, b, scale)


def _folding_pays(x: Array, kernel: Array) -> bool:
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
