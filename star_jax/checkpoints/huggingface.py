"""Hugging Face checkpoints: safetensors in, tensor by tensor, and out again.

Layers are stacked and kernels transposed here and nowhere else. Each tensor is read, cast, perhaps quantised, and
written to its place on the device before the next one is read, so that the host never holds more than one.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from star_jax.checkpoints.families import expert_paths, norm_paths
from star_jax.checkpoints.files import SINGLE_FILE
from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.hub import resolve_folder
from star_jax.checkpoints.parts import Parts
from star_jax.checkpoints.tensor_shapes import (
    EMBEDDING,
    HEAD,
    expert_shapes,
    norm_width,
    projection_shapes,
    router_shape,
    tensor_shapes,
)
from star_jax.checkpoints.tensors import TensorReader
from star_jax.errors import ConfigError
from star_jax.models.architecture import TransformerConfig
from star_jax.models.projections import PROJECTION_PATHS, module_path
from star_jax.models.rotary import Rope
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.ops.quantization import Quantization, quantize

_log = logging.getLogger(__name__)

Placement = Callable[[str, tuple[int, ...]], Sharding | None]
"""Parameter, such as `layers.q_proj.kernel`, and shape -> where it is put; None for the default device."""


def load_model(path: str | Path, dtype: str = "float32", **options: Any) -> LanguageModel:
    """Loads the model of a folder, a hub name, or `embedded:NAME`; options and errors as those of `load_folder`."""
    return load_folder(resolve_folder(path), dtype, **options)


def load_folder(
    folder: Path,
    dtype: str = "float32",
    *,
    quantization: Quantization = "none",
    longest: int | None = None,
    ignored_fields: Collection[str] = (),
    placement: Placement | None = None,
) -> LanguageModel:
    """Loads a checkpoint of one of the families in `checkpoints.hf_config`.

    Args:
      folder: that the model is in.
      dtype: type the weights are stored and multiplied in.
      quantization: of the projections' kernels; embedding, head, norms and biases keep `dtype`.
      longest, ignored_fields: see `hf_config.read_config`.
      placement: where parameters are put; None for the default device.

    Returns:
      The decoder and its parameters: kernels `L×in×out`, biases and norms `L×width`, embedding and head `V×D`.

    Raises:
      ConfigError: a file or a tensor is missing, has the wrong shape, or is one that the family does not have.
    """
    config = read_config(folder, dtype, longest, ignored_fields)
    return load_weights(folder, config, quantization=quantization, placement=placement)


def load_weights(
    folder: Path, config: TransformerConfig, *, quantization: Quantization = "none", placement: Placement | None = None
) -> LanguageModel:
    """The weights of a checkpoint whose config.json has been read; for the rest see `load_folder`.

    Raises:
      ConfigError: a file or a tensor is missing, has the wrong shape, or is one that the family does not have.
    """
    dtype = config.dtype
    text_only = config.module_root != "model"
    if config.tie_word_embeddings:
        with TensorReader(folder, text_only=text_only) as tensors:
            config = dataclasses.replace(config, tie_word_embeddings=not _own_head(folder, tensors))
    place: Placement = placement or (lambda name, shape: None)
    width, depth = config.hidden_size, config.num_hidden_layers
    with TensorReader(folder, text_only=text_only) as tensors:
        _refuse_extra(folder, set(tensors.names), config)

        def whole(name: str, tensor: str, *shape: int) -> jax.Array:
            stored = tensors.expect(tensor, shape)
            return _put(stored.astype(dtype, copy=False), place(name, shape))

        def stack(name: str, suffix: str, *shape: int, kind: Quantization = "none") -> Any:
            put = partial(place, f"layers.{name}")
            parts = Parts(tensors, [shape], put((depth, *reversed(shape))))
            read = (parts.read([f"model.layers.{layer}.{suffix}"]) for layer in range(depth))
            return _stacked(read, depth, jnp.dtype(dtype), kind, put)

        # Of two that are tied, a file may hold either.
        swapped = config.tie_word_embeddings and EMBEDDING not in tensors.names and HEAD in tensors.names
        embedding = whole("embed_tokens", HEAD if swapped else EMBEDDING, config.vocab_size, width)
        params: dict[str, Any] = {"embed_tokens": {"embedding": embedding}}
        if not config.tie_word_embeddings:
            params["lm_head"] = whole("lm_head", HEAD, config.vocab_size, width)
        params["norm"] = {"scale": whole("norm", "model.norm.weight", width)}
        layers: dict[str, Any] = {
            name: {"scale": stack(name, f"{suffix}.weight", norm_width(config, name))}
            for name, suffix in norm_paths(config).items()
        }
        for name, (fan_in, features) in projection_shapes(config).items():
            suffix = PROJECTION_PATHS[name]
            layers[name] = {"kernel": stack(f"{name}.kernel", f"{suffix}.weight", features, fan_in, kind=quantization)}
            if name in config.architecture.biases:
                layers[name]["bias"] = stack(f"{name}.bias", f"{suffix}.bias", features)
        if config.experts is not None:
            experts = _expert_stacks(tensors, config, jnp.dtype(dtype), quantization, place)
            router = stack("experts.router", f"{expert_paths(config).router}.weight", *router_shape(config))
            layers["experts"] = {"router": router, **experts}
        params["layers"] = layers
    return LanguageModel(Decoder(config), params)


def _expert_stacks(
    tensors: TensorReader, config: TransformerConfig, dtype: Any, kind: Quantization, place: Placement
) -> dict[str, Any]:
    """Kernels `L×E×in×out` of all experts, of which the host holds one at a time."""
    assert config.experts is not None
    shapes, depth, count = expert_shapes(config), config.num_hidden_layers, config.experts.count
    paths = expert_paths(config)

    def stack(name: str, paths: Sequence[str]) -> Any:
        put, stored = partial(place, f"layers.experts.{name}"), [shapes[path] for path in paths]
        parts = Parts(tensors, stored, put((depth * count, stored[0][1], sum(shape[0] for shape in stored))))
        read = (
            parts.read([f"model.layers.{layer}.{path.format(number)}.weight" for path in paths])
            for layer in range(depth)
            for number in range(count)
        )
        whole = _stacked(read, depth * count, dtype, kind, put)
        return jax.tree.map(lambda leaf: leaf.reshape(depth, count, *leaf.shape[1:]), whole)

    return {"gate_up": stack("gate_up", (paths.gate, paths.up)), "down": stack("down", (paths.down,))}


def save_model(model: LanguageModel, folder: Path) -> None:
    """Writes config.json and model.safetensors of a plain Llama; for those, the inverse of `load_model`.

    Raises:
      ValueError: the model has parts that a plain Llama has not.
    """
    from safetensors.flax import save_file

    config, params = model.config, model.params
    same = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "dtype"),
    )
    written, theta = {name: getattr(config, name) for name in same}, config.ropes[0].theta
    if config != TransformerConfig(**written, ropes=(Rope(theta),)):
        raise ValueError("only plain Llama models can be written")
    tensors = {
        EMBEDDING: params["embed_tokens"]["embedding"],
        "model.norm.weight": params["norm"]["scale"],
    }
    for layer in range(config.num_hidden_layers):
        for name in projection_shapes(config):
            tensors[f"{module_path(layer, name)}.weight"] = params["layers"][name]["kernel"][layer].T
        for name, suffix in norm_paths(config).items():
            tensors[f"model.layers.{layer}.{suffix}.weight"] = params["layers"][name]["scale"][layer]
    if not config.tie_word_embeddings:
        tensors[HEAD] = params["lm_head"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: jnp.asarray(tensor) for name, tensor in tensors.items()}, folder / SINGLE_FILE, {"format": "pt"})
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        **written,
    }
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _own_head(folder: Path, tensors: TensorReader) -> bool:
    """Whether a file has a head of its own, though config.json says that it is the embedding.

    Transformers takes such a head as it is, and so is it taken here.
    """
    if not {EMBEDDING, HEAD} <= set(tensors.names) or tensors.same(EMBEDDING, HEAD):
        return False
    _log.warning(
        "%s: config.json says that the head is the embedding (tie_word_embeddings), and the file holds another head; "
        "the file's is used, as Transformers does",
        folder,
    )
    return True


def _refuse_extra(folder: Path, found: set[str], config: TransformerConfig) -> None:
    # Old files repeat the rotary frequencies, and a tied head.
    tied = {HEAD} if config.tie_word_embeddings else set()
    extra = {name for name in found - set(tensor_shapes(config)) - tied if not name.endswith("rotary_emb.inv_freq")}
    together = next((name for name in sorted(extra) if name.endswith("experts.gate_up_proj")), None)
    if config.experts is not None and together:
        raise ConfigError(
            f"{folder}: the tensor {together} holds all experts of a layer, and is not read; load the model with "
            "Transformers and save it with save_pretrained, which writes each expert by itself"
        )
    if extra:
        raise ConfigError(f"{folder}: the tensors {', '.join(sorted(extra)[:4])} are not part of what config.json says")


def _put(tensor: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None or sharding.is_fully_addressable:
        return jnp.asarray(tensor) if sharding is None else jax.device_put(tensor, sharding)
    # Each process has read all of it: nothing is compared with what others have.
    return jax.make_array_from_callback(tensor.shape, sharding, tensor.__getitem__)


def _stacked(
    tensors: Iterable[np.ndarray | jax.Array],
    depth: int,
    dtype: Any,
    kind: Quantization,
    place: Callable[[tuple[int, ...]], Sharding | None],
) -> Any:
    """Layers' tensors as one array, matrices transposed, written layer by layer into their place."""
    stack: Any = None
    for layer, tensor in enumerate(tensors):
        if stack is None:
            one = jax.eval_shape(partial(_prepared, dtype=dtype, kind=kind), tensor)
            stack = jax.tree.map(lambda leaf: _empty((depth, *leaf.shape), leaf.dtype, place), one)
        stack = _written(stack, tensor, layer, dtype=dtype, kind=kind)
        # Without waiting, the host would run ahead and hold what has not been written yet.
        jax.block_until_ready(stack)
    return stack


def _empty(shape: tuple[int, ...], dtype: Any, place: Callable[[tuple[int, ...]], Sharding | None]) -> jax.Array:
    return jnp.zeros(shape, dtype, device=place(shape))


def _prepared(tensor: jax.Array, dtype: Any, kind: Quantization) -> Any:
    return quantize(tensor.T.astype(dtype), kind)


@partial(jax.jit, donate_argnames=("stack",), static_argnames=("dtype", "kind"))
def _written(stack: Any, tensor: jax.Array, layer: int, *, dtype: Any, kind: Quantization) -> Any:
    # This update is in place for every type; an indexed one of bfloat16 would go through a copy of the whole stack.
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_index_in_dim(whole, part, layer, 0),
        stack,
        _prepared(tensor, dtype, kind),
    )
