"""The accelerators' own attention kernels for whole sequences, and which platform uses which.

Shapes: `B` batch, `T` tokens, `H` query heads, `G` key-value heads, `d` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from star_jax.ops.platform import target_device

Array = jax.Array

AttentionImplementation = Literal["xla", "cudnn", "splash"]
"""Plain XLA; cuDNN's flash attention on NVIDIA GPUs; splash attention, a Pallas kernel, on TPUs."""

TILE = 128
"""Sequences are padded to a multiple of it inside. Splash attention works in blocks of it. cuDNN takes any length, but
some of its versions give NaN gradients where a tile is half full (pytorch/pytorch issue 196678)."""

SPLASH_BLOCKS = (512, 256, TILE)
"""Block lengths of splash attention, best first; the first that divides the sequence is taken."""


class ImplementationChoice(NamedTuple):
    """A kernel, and why it is not the platform's own.

    Attributes:
      kernel: the kernel to use.
      reason: why the platform's own does not serve; empty where it does, and where the platform has none.
    """

    kernel: AttentionImplementation
    reason: str = ""


def choose_implementation(
    dtype: DTypeLike, head_dim: int, *, softcap: float | None = None, device: Any = None, devices: int | None = None
) -> ImplementationChoice:
    """The attention kernel for whole sequences.

    Args:
      dtype: of queries, keys and values.
      head_dim: d.
      softcap: of the scores; None for none.
      device: a JAX device of the kind that will run it; None for one that programs are made for.
      devices: devices the compiler may split a program over; None for all of the backend, or 1 inside of
        `shard_map`, where the program is split already.

    Returns:
      The kernel, with the reason where it is XLA although the platform has one of its own.
    """
    device = target_device() if device is None else device
    if devices is None:
        devices = 1 if jax.sharding.get_abstract_mesh().manual_axes else jax.device_count()
    if device.platform == "tpu":
        reason = "the compiler cannot split splash attention over devices outside of shard_map" if devices > 1 else ""
        return ImplementationChoice("xla" if reason else "splash", reason)
    if device.platform == "gpu" and "cuda" in device.client.platform_version:
        reason = _cudnn_lacks(dtype, head_dim, softcap, float(device.compute_capability))
        return ImplementationChoice("xla" if reason else "cudnn", reason)
    return ImplementationChoice("xla")


def _cudnn_lacks(dtype: DTypeLike, head_dim: int, softcap: float | None, capability: float) -> str:
    """What of this cuDNN's flash attention does not support, as JAX checks it; empty for nothing."""
    widest = 256 if capability >= 9.0 else 128
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN attention takes bfloat16 and float16, not {jnp.dtype(dtype)}"
    if softcap is not None:
        return "cuDNN attention has no cap of the scores"
    if head_dim % 8 or head_dim > widest:
        return f"cuDNN attention takes heads of a multiple of 8 up to {widest}, not {head_dim}"
    if capability < 8.0:
        return f"cuDNN attention needs compute capability 8.0, and this GPU has {capability}"
    return ""


def cudnn(
    query: Array, key: Array, value: Array, *, scale: float, window: int | None = None, softcap: None = None
) -> Array:
    """Causal attention of `B×T×H×d` to `B×T×G×d` by cuDNN; `window` and `scale` as for `self_attention`."""
    length = query.shape[1]
    # By causality alone: lengths of the rows are not batched under vmap when the rest is, which JAX's rule for this
    # kernel cannot deal with, and rows of padding would be left unwritten (jax-ml/jax pull request 38498).
    mixed = jax.nn.dot_product_attention(
        *_padded(query, key, value),
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return mixed[:, :length]


def splash(
    query: Array,
    key: Array,
    value: Array,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> Array:
    """Causal attention of `B×T×H×d` to `B×T×G×d` by splash attention.

    Args:
      query: `B×T×H×d`.
      key: `B×T×G×d`.
      value: `B×T×G×d`.
      scale: multiplies the products.
      window: the most recent positions a query sees, its own included; None for all.
      softcap: c in c · tanh(product / c); None for none.
      interpret: run on any platform, slowly, to test it.

    Returns:
      `B×T×H×d`.
    """
    # Here, for Pallas takes a while to import and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    length, heads = query.shape[1:3]
    # The kernel has no scale of its own.
    query, key, value = _padded((query * scale).astype(query.dtype), key, value)
    whole = query.shape[1]
    if window is None:
        mask: Any = splash_attention_mask.CausalMask((whole, whole))
    else:
        mask = splash_attention_mask.LocalMask((whole, whole), (window - 1, 0), 0)
    block = next(size for size in SPLASH_BLOCKS if whole % size == 0)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    mixed = jax.vmap(_in_precision_of_type(kernel, query.dtype))(*(part.swapaxes(1, 2) for part in (query, key, value)))
    return mixed.swapaxes(1, 2)[:, :length]


def _in_precision_of_type(function: Callable[..., Array], dtype: DTypeLike) -> Callable[..., Array]:
    """The function, its gradient included, whose products do not ask for more precision than their factors have.

    With `jax_default_matmul_precision` at `highest`, products of bfloat16 are refused by the compiler of TPU kernels.
    """
    if dtype == jnp.float32:
        return function
    own = partial(jax.default_matmul_precision, "default")

    @jax.custom_vjp
    def called(*args: Array) -> Array:
        with own():
            return function(*args)

    def forward(*args: Array) -> tuple[Array, Any]:
        with own():
            return jax.vjp(function, *args)

    def backward(pullback: Any, slope: Array) -> tuple[Array, ...]:
        with own():
            found: tuple[Array, ...] = pullback(slope)
        return found

    called.defvjp(forward, backward)
    return called


def _padded(*parts: Array) -> list[Array]:
    """`B×T×…` with zeros behind, up to whole tiles; causal attention never looks there."""
    short = -parts[0].shape[1] % TILE
    return [jnp.pad(part, ((0, 0), (0, short), (0, 0), (0, 0))) for part in parts]


IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {"cudnn": cudnn, "splash": splash}
"""Functions of query, key and value, the static `window`, `scale` and `softcap`."""
