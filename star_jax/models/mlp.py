"""The feed-forward half of a block.

Shapes: `B` batch, `T` tokens, `D` model width, `I` inner width.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from star_jax.models.architecture import TransformerConfig
from star_jax.ops.matmul import DropoutMask
from star_jax.ops.pointwise import gated

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
    product = gated(config.hidden_act, gate, up)
    return project("down_proj", x.shape[-1], product, mask("down_proj", product))
