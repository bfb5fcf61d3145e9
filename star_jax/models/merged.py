"""A model with its adapter inside: fewer and larger products where many small ones are slow.

Shapes: `L` layers, `I` and `O` input and output width of a projection.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.ops.matmul import merged_kernel
from star_jax.parallel.mesh import by_rows, parameter_specs
from star_jax.parallel.parts import own_parts
from star_jax.parallel.parts import whole as gathered

Array = jax.Array

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Projection -> those that read the same input, which it replaces."""


def merge_adapter(model: LanguageModel, adapter: Adapter | None) -> tuple[LanguageModel, Adapter | None]:
    """The same function of tokens, without an adapter: ΔW = scale · A B is added to the weights.

    Projections that read the same input become one. Only where weights are plain float32: in fewer bits a small ΔW
    would be lost in the rounding, and then both are returned as they are.
    """
    return (_merged(model, adapter), None) if can_merge(model) else (model, adapter)


def can_merge(model: LanguageModel) -> bool:
    """Whether `merge_adapter` puts an adapter into these weights: where all of them are float32."""
    kernels = [layer["kernel"] for layer in model.params["layers"].values() if "kernel" in layer]
    return all(isinstance(kernel, jax.Array) and kernel.dtype == jnp.float32 for kernel in kernels)


def _merged(model: LanguageModel, adapter: Adapter | None) -> LanguageModel:
    """Only projections go through the program, for what a program returns is a copy."""
    layers = model.params["layers"]
    projections = {name: layer for name, layer in layers.items() if "kernel" in layer}
    rest = {name: layer for name, layer in layers.items() if "kernel" not in layer}
    merged = _merged_layers(LanguageModel(model.decoder, {"layers": projections}), adapter)
    return LanguageModel(merged.decoder, {**model.params, "layers": {**rest, **merged.params["layers"]}})


@jax.jit
def _merged_layers(stacks: LanguageModel, adapter: Adapter | None) -> LanguageModel:
    """One layer at a time is gathered, merged, and divided again, so that no second copy of all is made on the way."""
    like = jax.eval_shape(_merged_whole, stacks, adapter)
    specs = parameter_specs(like.params)["layers"]

    def one(layer: Any) -> Any:
        merged = _merged_whole(*jax.tree.map(lambda leaf: leaf[None], gathered(layer)))
        return own_parts(jax.tree.map(lambda leaf: leaf[0], merged.params["layers"]), specs)

    layers = by_rows(lambda stacks, _: jax.lax.map(one, stacks), (stacks, adapter), (), out=specs)
    return LanguageModel(like.decoder, {"layers": layers})


def _merged_whole(model: LanguageModel, adapter: Adapter | None) -> LanguageModel:
    layers = model.params["layers"]
    kernels = {name: layer["kernel"] for name, layer in layers.items() if "kernel" in layer}
    if adapter is not None:
        for name, factors in adapter.weights["layers"].items():
            scale = adapter.scale["layers"][name]["scale"]
            kernels[name] = merged_kernel(kernels[name], factors["a"], factors["b"], scale)
    architecture = model.config.architecture
    biased = set(architecture.biases)
    parts: dict[str, Any] = {name: {**layers[name], "kernel": kernel} for name, kernel in kernels.items()}
    for whole, names in FUSED.items():
        if whole not in parts and names[0] in parts:
            some = any(name in biased for name in names)
            parts[whole] = _joined([parts.pop(name) for name in names], some)
            biased = biased - set(names) | ({whole} if some else set())
    config = dataclasses.replace(
        model.config, architecture=dataclasses.replace(architecture, fused=True, biases=tuple(sorted(biased)))
    )
    rest = {name: layer for name, layer in layers.items() if "kernel" not in layer}
    decoder = model.decoder.clone(config=config)
    return LanguageModel(decoder, {**model.params, "layers": {**rest, **parts}})


def _joined(parts: list[dict[str, Array]], biased: bool) -> dict[str, Array]:
    """Kernels `L×I×O` side by side, and biases `L×O` with 0 for those that have none."""
    joined = {"kernel": jnp.concatenate([part["kernel"] for part in parts], axis=-1)}
    if biased:
        shape = [(*part["kernel"].shape[:1], part["kernel"].shape[-1]) for part in parts]
        biases = [part.get("bias", jnp.zeros(one)) for part, one in zip(parts, shape, strict=True)]
        joined["bias"] = jnp.concatenate(biases, axis=-1)
    return joined
