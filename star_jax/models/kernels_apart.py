"""A model whose layers have kernels of their own, for a CPU: it would copy each out of a stack before every product.

Shapes: `L` layers, `I` and `O` input and output width of a projection.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from star_jax.models.transformer import UNROLLED_LAYERS, LanguageModel
from star_jax.ops.platform import target_device
from star_jax.parallel.mesh import data_mesh, parts_of_a_model

Array = jax.Array

MOST_BYTES = 2**31
"""Of the copies on a device: larger models fill a machine's memory as they are."""

MOST_DEVICES = 2
"""As many as a CPU shows by itself (`environment.CPU_DEVICES`)."""


def kernels_apart(model: LanguageModel) -> LanguageModel:
    """The same function of tokens; as it is where that saves nothing.

    `params["layers"][projection]["kernel"]` are numbers `L` then, and `params["kernels"][projection]["kernel"]` the
    arrays `I×O`, a second copy of the stack on each device. Not on accelerators, which read layers where they lie; not
    where devices share a model, where the loop is written out, where kernels are quantised and made wider anyway, or
    where the copies would take more than `MOST_BYTES`. And not on more than `MOST_DEVICES`, which a CPU shows to
    rehearse a larger machine: there, results are the same to the bit on every mesh.

    Training alone asks for it: its steps have the fewest tokens for the kernels that they read.
    """
    layers = model.params["layers"]
    stacks = {name: layer["kernel"] for name, layer in layers.items() if "kernel" in layer}
    depth = model.config.num_hidden_layers
    looped = depth > UNROLLED_LAYERS or model.decoder.rematerialise
    plain = all(isinstance(kernel, jax.Array) for kernel in stacks.values())
    few = parts_of_a_model() == 1 and data_mesh().size <= MOST_DEVICES
    if target_device().platform != "cpu" or not (looped and plain and few):
        return model
    if sum(kernel.size * kernel.dtype.itemsize for kernel in stacks.values()) > MOST_BYTES:
        return model
    numbered = {
        name: {**layer, "kernel": jnp.arange(depth, dtype=jnp.int32)} if name in stacks else layer
        for name, layer in layers.items()
    }
    return LanguageModel(model.decoder, {**model.params, "layers": numbered, "kernels": _apart(stacks)})


@jax.jit
def _apart(stacks: dict[str, Array]) -> dict[str, Any]:
    return {name: {"kernel": tuple(stack)} for name, stack in stacks.items()}
