"""Hugging Face checkpoints: safetensors in, tensor by tensor, and out again.

Layers are stacked and kernels transposed here and nowhere else. Each tensor is read, cast, perhaps quantised, and
written to its place on the device before the next one is read, so that the host never holds more than one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from star_jax.checkpoints.files import on_one_line, read_object, weight_files
from star_jax.checkpoints.hf_config import norm_paths, read_config
from star_jax.checkpoints.hub import resolve_folder
from star_jax.errors import ConfigError
from star_jax.models.architecture import TransformerConfig
from star_jax.models.projections import PROJECTION_PATHS, module_path
from star_jax.models.rotary import Rope
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.ops.quantization import Quantization, quantize

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"

FLOATS = ("F64", "F32", "BF16", "F16")
"""Types of weights that are read, as safetensors names them."""

Placement = Callable[[str, tuple[int, ...]], Sharding | None]
"""Parameter, such as `layers.q_proj.kernel`, and shape -> where it is put; None for the default device."""


class TensorReader:
    """The tensors of a folder, read one at a time, and never mapped into memory, where they would stay.

    Use as a context manager.

    Raises:
      ConfigError: a file cannot be read, or one that the index names is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        for file in self._files():
            self._open(file)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._handles[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the type it is stored in."""
        return self._handles[name].get_tensor(name)

    def expect(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor that must be there, in that shape.

        Raises:
          ConfigError: it is missing, quantised, or of another shape.
        """
        if name not in self._handles:
            raise ConfigError(f"{self.folder}: the tensor {name} is missing")
        stored = self._handles[name].get_slice(name).get_dtype()
        if stored not in FLOATS:
            raise ConfigError(
                f"{self.folder}: the tensor {name} is stored as {stored}; quantised weights are not read, take the "
                "unquantised checkpoint and set model.quantization"
            )
        if self.shape(name) != shape:
            raise ConfigError(
                f"{self.folder}: the tensor {name} has shape {self.shape(name)}; config.json says {shape}"
            )
        return self.read(name)

    def _files(self) -> Sequence[Path]:
        # Some hub folders hold the same weights twice, under other names; the index says which are meant.
        if (self.folder / INDEX_FILE).is_file():
            named = sorted(set(_weight_map(self.folder / INDEX_FILE).values()))
            missing = [name for name in named if not (self.folder / name).is_file()]
            if missing:
                raise ConfigError(f"{self.folder}: {INDEX_FILE} names {missing[0]}, which is not there; fetch it again")
            return [self.folder / name for name in named]
        single = self.folder / SINGLE_FILE
        return [single] if single.is_file() else weight_files(self.folder)

    def _open(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handle = self._stack.enter_context(safe_open(file, framework="np", backend="pread"))
        except (SafetensorError, OSError) as error:
            self._stack.close()
            raise ConfigError(f"{file} cannot be read: {on_one_line(error)}; fetch the whole file again") from error
        self._handles |= dict.fromkeys(handle.keys(), handle)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, as an index says."""
    raw = read_object(index)
    found = raw.get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ConfigError(f"{index} has no object 'weight_map' of names of files; fetch the file again")
    if outside := [name for name in found.values() if Path(name).name != name]:
        raise ConfigError(f"{index} names {outside[0]}, which is not in its folder; fetch the file again")
    return found


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
    place: Placement = placement or (lambda name, shape: None)
    width, depth = config.hidden_size, config.num_hidden_layers
    with TensorReader(folder) as tensors:
        _refuse_extra(folder, set(tensors.names), config)

        def whole(name: str, tensor: str, *shape: int) -> jax.Array:
            stored = tensors.expect(tensor, shape)
            return _put(stored.astype(dtype, copy=False), place(name, shape))

        def stack(name: str, suffix: str, *shape: int, kind: Quantization = "none") -> Any:
            names = [f"model.layers.{layer}.{suffix}" for layer in range(depth)]
            read = (tensors.expect(name, shape) for name in names)
            return _stacked(read, depth, jnp.dtype(dtype), kind, partial(place, f"layers.{name}"))

        params: dict[str, Any] = {
            "embed_tokens": {"embedding": whole("embed_tokens", "model.embed_tokens.weight", config.vocab_size, width)}
        }
        if not config.tie_word_embeddings:
            params["lm_head"] = whole("lm_head", "lm_head.weight", config.vocab_size, width)
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
        params["layers"] = layers
    return LanguageModel(Decoder(config), params)


def projection_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(in, out) widths of the projections a block has, in the order of `PROJECTION_PATHS`."""
    width, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    if config.architecture.fused:
        attention, gated = {"qkv_proj": (width, query + 2 * shared)}, {"gate_up_proj": (width, 2 * inner)}
    else:
        attention = {"q_proj": (width, query), "k_proj": (width, shared), "v_proj": (width, shared)}
        gated = {"gate_proj": (width, inner), "up_proj": (width, inner)}
    return {**attention, "o_proj": (query, width), **gated, "down_proj": (inner, width)}


def norm_width(config: TransformerConfig, name: str) -> int:
    """Width of a norm of a block."""
    if name not in ("q_norm", "k_norm"):
        return config.hidden_size
    heads = config.num_attention_heads if name == "q_norm" else config.num_key_value_heads
    return config.head_dim * (heads if config.architecture.qk_norm == "width" else 1)


def tensor_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint."""
    width = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    shapes |= {} if config.tie_word_embeddings else {"lm_head.weight": (config.vocab_size, width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(config.num_hidden_layers):
        for name, suffix in norm_paths(config).items():
            shapes[f"model.layers.{layer}.{suffix}.weight"] = (norm_width(config, name),)
        for name, (fan_in, features) in projection_shapes(config).items():
            shapes[f"{module_path(layer, name)}.weight"] = (features, fan_in)
            if name in config.architecture.biases:
                shapes[f"{module_path(layer, name)}.bias"] = (features,)
    return shapes


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
        "model.embed_tokens.weight": params["embed_tokens"]["embedding"],
        "model.norm.weight": params["norm"]["scale"],
    }
    for layer in range(config.num_hidden_layers):
        for name in projection_shapes(config):
            tensors[f"{module_path(layer, name)}.weight"] = params["layers"][name]["kernel"][layer].T
        for name, suffix in norm_paths(config).items():
            tensors[f"model.layers.{layer}.{suffix}.weight"] = params["layers"][name]["scale"][layer]
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = params["lm_head"]
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


def _refuse_extra(folder: Path, found: set[str], config: TransformerConfig) -> None:
    # Old files repeat the rotary frequencies, and a tied head.
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    extra = {name for name in found - set(tensor_shapes(config)) - tied if not name.endswith("rotary_emb.inv_freq")}
    if extra:
        raise ConfigError(f"{folder}: the tensors {', '.join(sorted(extra)[:4])} are not part of what config.json says")


def _put(tensor: np.ndarray, sharding: Sharding | None) -> jax.Array:
    return jnp.asarray(tensor) if sharding is None else jax.device_put(tensor, sharding)


def _stacked(
    tensors: Iterable[np.ndarray],
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
