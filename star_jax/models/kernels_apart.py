"""A model whose layers have kernels of their own, for a CPU: it would copy each out of a stack before every product.

Shapes: `L` layers, `I` and `O` input and output width of a projection.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from star_jax.models.transformer import UNROLLED_LAYERS, LanguageModel
from star_jax.ops.platform import target_device
from star_jax.parallel.mesh import parts_of_a_model

Array = jax.Array


def kernels_apart(model: LanguageModel) -> LanguageModel:
    """The same function of tokens; as it is where that saves nothing.

    `params["layers"][projection]["kernel"]` are numbers `L` then, and `params["kernels"][projection]["kernel"]` the
    arrays `I×O`, a second copy of the stack. Not on accelerators, which read layers where they lie; not where devices
    share a model, where the loop is written out, or where kernels are quantised and made wider anyway.
    """
    layers = model.params["layers"]
    stacks = {name: layer["kernel"] for name, layer in layers.items() if "kernel" in layer}
    depth = model.config.num_hidden_layers
    plain = all(isinstance(kernel, jax.Array) for kernel in stacks.values())
    if target_device().platform != "cpu" or parts_of_a_model() > 1 or depth <= UNROLLED_LAYERS or not plain:
        return model
    numbered = {
        name: {**layer, "kernel": jnp.arange(depth, dtype=jnp.int32)} if name in stacks else layer
        for name, layer in layers.items()
    }
    return LanguageModel(model.decoder, {**model.params, "layers": numbered, "kernels": _apart(stacks)})


@jax.jit
def _apart(stacks: dict[str, Array]) -> dict[str, Any]:
    return {name: {"kernel": tuple(stack)} for name, stack in stacks.items()}
