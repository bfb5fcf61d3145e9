"""The feed-forward half of a block.

Shapes: `B` batch, `T` tokens of a row, `M` tokens, `D` model width, `I` inner width, `E` experts, `k` experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from star_jax.models.architecture import TransformerConfig
from star_jax.ops.matmul import DropoutMask, product
from star_jax.ops.pointwise import gated
from star_jax.ops.quantization import Kernel, matmul
from star_jax.parallel.parts import all_outputs, all_rows, here, multiplied, own_rows, stays

Array = jax.Array

Project = Callable[[str, int, Array, DropoutMask | None], Array]
"""(name, output width, input, dropout mask of the adapter) -> the projection of that name."""

DrawMask = Callable[[str, Array], DropoutMask | None]
"""(name, input) -> the adapter's dropout mask for what a projection reads."""


def gated_mlp(config: TransformerConfig, project: Project, mask: DrawMask, x: Array) -> Array:
    """down(act(gate(x)) · up(x)), `B×T×D` to `B×T×D` (Shazeer 2020, arXiv 2002.05202, equation 6).

    Args:
      config: inner width, activation, and whether gate and up are one projection.
      project: applies a projection of the block.
      mask: draws the dropout masks.
      x: `B×T×D`.
    """
    inner, drawn = config.intermediate_size, mask("gate_up_proj", x)
    if config.architecture.fused_gate:
        gate, up = jnp.split(project("gate_up_proj", 2 * inner, x, drawn), 2, axis=-1)
    else:
        gate, up = (project(name, inner, x, drawn) for name in ("gate_proj", "up_proj"))
    inside = gated(config.hidden_act, gate, up)
    return project("down_proj", x.shape[-1], inside, mask("down_proj", inside))


class ExpertMLP(nn.Module):
    """Experts in place of one MLP: each token goes through the few that its router gives the highest probability.

    Shazeer et al. 2017, arXiv 1701.06538. Parameters are `router` `D×E`, and a kernel an expert of `gate_up` `E×D×2I`
    and `down` `E×I×D`, which may be quantised.

    Attributes:
      config: of the decoder, with `experts`.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`B×T×D` to `B×T×D`."""
        config, experts = self.config, self.config.experts
        assert experts is not None
        width, inner = x.shape[-1], experts.intermediate_size
        start = nn.initializers.lecun_normal()
        router = self.param("router", start, (width, experts.count), config.dtype)
        gate_up: Kernel
        down: Kernel
        if self.has_variable("params", "gate_up"):
            gate_up, down = self.get_variable("params", "gate_up"), self.get_variable("params", "down")
        else:
            gate_up = self.param("gate_up", start, (experts.count, width, 2 * inner), config.dtype)
            down = self.param("down", start, (experts.count, inner, width), config.dtype)
        tokens, kernels = x.reshape(-1, width), (gate_up, down)
        if stays(kernels):
            # All devices take the same tokens to the same experts, and each makes a part of every output that is split.
            mixed = own_rows(mixture(config, kernels, all_rows(tokens), router, _product_in_place))
        else:
            mixed = multiplied(partial(mixture, config), kernels, tokens, router)
        return mixed.astype(x.dtype).reshape(x.shape)


def _product_in_place(x: Array, kernel: Any) -> Array:
    return all_outputs(matmul(x, here(kernel))) if stays(kernel) else matmul(x, kernel)


def mixture(
    config: TransformerConfig,
    kernels: tuple[Any, Any],
    tokens: Array,
    router: Array,
    multiply: Callable[[Array, Any], Array] = matmul,
) -> Array:
    """What their experts make of tokens `M×D`, float32.

    Args:
      config: of the decoder.
      kernels: `gate_up` and `down` of `ExpertMLP`.
      tokens: `M×D`.
      router: `D×E`.
      multiply: the product of tokens and one expert's kernel.
    """
    experts, (gate_up, down) = config.experts, kernels
    assert experts is not None
    chances = jax.nn.softmax(product(tokens, router).astype(jnp.float32), axis=-1)
    weights, chosen = jax.lax.top_k(chances, experts.per_token)
    if experts.normalised:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)

    def expert(number: Array, part: Array) -> Array:
        take = partial(jax.lax.dynamic_index_in_dim, index=number, keepdims=False)
        gate, up = jnp.split(multiply(part, jax.tree.map(take, gate_up)), 2, axis=-1)
        return multiply(gated(config.hidden_act, gate, up), jax.tree.map(take, down))

    found = grouped(expert, tokens, chosen, experts.count)
    return jnp.sum(found.astype(jnp.float32) * weights[..., None], axis=1)


def grouped(expert: Callable[[Array, Array], Array], tokens: Array, chosen: Array, count: int) -> Array:
    """What each token's experts make of it.

    Tokens are sorted by expert and cut into blocks of one expert each, which are gone through one after another: so an
    expert reads its own tokens only, whatever their number, and no more than one expert's weights are at hand.

    Args:
      expert: (number, tokens `b×D`) -> `b×D`.
      tokens: `M×D`.
      chosen: `M×k` numbers of experts.
      count: experts there are.

    Returns:
      `M×k×D`.
    """
    each = chosen.shape[1]
    pairs = chosen.size
    flat = chosen.reshape(-1)
    block = max(8, min(128, 1 << (pairs // count).bit_length()))
    # Every expert that is chosen fills its last block in part.
    blocks = pairs // block + min(count, pairs)
    order = jnp.argsort(flat, stable=True)
    sizes = jnp.bincount(flat, length=count)
    ends = jnp.cumsum(-(-sizes // block))
    # 1. The slot of each pair: the first block of its expert, and its place among the expert's tokens.
    rank = jnp.zeros(pairs, jnp.int32).at[order].set(jnp.arange(pairs, dtype=jnp.int32))
    rank = rank - (jnp.cumsum(sizes) - sizes)[flat]
    slots = (ends - -(-sizes // block))[flat] * block + rank
    # 2. Tokens into slots, 0 where there is none, and block by block through the experts.
    source = jnp.full(blocks * block, pairs, jnp.int32).at[slots].set(jnp.arange(pairs, dtype=jnp.int32))
    filled = jnp.where((source < pairs)[:, None], tokens[jnp.minimum(source, pairs - 1) // each], 0)
    whose = jnp.minimum(jnp.searchsorted(ends, jnp.arange(blocks), side="right"), count - 1)
    # Weights are taken out again in a backward pass, or those of every block would be kept.
    made = jax.lax.map(
        jax.checkpoint(lambda one: expert(*one)), (whose, filled.reshape(blocks, block, tokens.shape[1]))
    )
    # 3. And back.
    return made.reshape(blocks * block, -1)[slots].reshape(*chosen.shape, -1)
