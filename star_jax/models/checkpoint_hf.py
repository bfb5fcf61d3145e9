"""Hugging Face folders: config.json and safetensors in, and out again.

One table says where each weight of a block lives in a checkpoint; stacking over layers happens here and
nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from star_jax.config import ConfigError
from star_jax.models.transformer import Decoder, TransformerConfig

EMBEDDED = "embedded:"

MODULE_PATHS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
NORM_PATHS = {"input_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}


@struct.dataclass
class LanguageModel:
    """A decoder with its frozen weights; a pytree whose decoder is static, so that `jit` takes it whole."""

    decoder: Decoder = struct.field(pytree_node=False)
    params: Any

    @property
    def config(self) -> TransformerConfig:
        """Shape and constants of the decoder."""
        return self.decoder.config


def resolve_folder(path: str) -> Path:
    """Folder of a model: a local one, one that ships with the package, or a hub name downloaded.

    Raises:
      ConfigError: it is none of these.
    """
    if path.startswith(EMBEDDED):
        folder = Path(__file__).parent.parent / "embedded" / path.removeprefix(EMBEDDED)
        if not folder.is_dir():
            raise ConfigError(f"the model is {path!r}; no model of that name ships with the package")
        return folder
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise ConfigError(f"the model is {path!r}; there is no such folder, and it is not a hub name OWNER/MODEL")
    # Imported here: the hub client is slow to load and local folders do not need it.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json"]))
    except Exception as error:  # The client raises a dozen unrelated classes; the user needs one sentence.
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"the model is {path!r}; there is no such folder, and the hub did not give it: {reason}"
        ) from error


def read_config(folder: Path, dtype: str) -> TransformerConfig:
    """Reads `config.json` of a model folder."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{folder} has no config.json; a model is a Hugging Face model folder")
    try:
        return TransformerConfig.from_hf(read_object(file), dtype)
    except KeyError as error:
        raise ConfigError(f"{file}: the field {error} is missing") from None


def load_model(path: str, dtype: str = "float32") -> LanguageModel:
    """Loads a Llama checkpoint.

    Args:
      path: folder, hub name, or `embedded:NAME`.
      dtype: type the weights are stored and multiplied in.

    Returns:
      The decoder and its parameters: kernels `L×in×out`, embeddings and head `V×D`.

    Raises:
      ConfigError: a file or a tensor is missing, has the wrong shape, or is one this decoder does not read.
    """
    folder = resolve_folder(path)
    config = read_config(folder, dtype)
    tensors = _read_safetensors(folder)
    target = jnp.dtype(dtype)

    def take(name: str, *shape: int) -> np.ndarray:
        if name not in tensors:
            raise ConfigError(f"{folder}: the tensor {name} is missing")
        tensor = tensors.pop(name)
        if tensor.shape != shape:
            raise ConfigError(f"{folder}: the tensor {name} has shape {tensor.shape}; config.json says {shape}")
        return tensor.astype(target)

    def stack(suffix: str, *shape: int) -> np.ndarray:
        layers = range(config.num_hidden_layers)
        return np.stack([take(f"model.layers.{layer}.{suffix}.weight", *shape) for layer in layers])

    width = config.hidden_size
    layers: dict[str, Any] = {
        name: {"kernel": jnp.asarray(stack(MODULE_PATHS[name], features, fan_in).swapaxes(1, 2))}
        for name, (fan_in, features) in projection_shapes(config).items()
    }
    layers |= {name: {"scale": jnp.asarray(stack(path, width))} for name, path in NORM_PATHS.items()}
    params: dict[str, Any] = {
        "embed_tokens": {"embedding": jnp.asarray(take("model.embed_tokens.weight", config.vocab_size, width))},
        "layers": layers,
        "norm": {"scale": jnp.asarray(take("model.norm.weight", width))},
    }
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    else:
        params["lm_head"] = jnp.asarray(take("lm_head.weight", config.vocab_size, width))
    left = [name for name in tensors if not name.endswith("rotary_emb.inv_freq")]
    if left:
        raise ConfigError(f"{folder}: the tensors {', '.join(sorted(left)[:4])} are not part of a Llama decoder")
    return LanguageModel(Decoder(config), params)


def save_model(model: LanguageModel, folder: Path) -> None:
    """Writes config.json and model.safetensors; the inverse of `load_model`."""
    from safetensors.flax import save_file

    config, params = model.config, model.params
    tensors = {
        "model.embed_tokens.weight": params["embed_tokens"]["embedding"],
        "model.norm.weight": params["norm"]["scale"],
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        for name, path in MODULE_PATHS.items():
            tensors[f"{prefix}.{path}.weight"] = params["layers"][name]["kernel"][layer].T
        for name, path in NORM_PATHS.items():
            tensors[f"{prefix}.{path}.weight"] = params["layers"][name]["scale"][layer]
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = params["lm_head"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: jnp.asarray(tensor) for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    fields = dataclasses.asdict(config)
    theta = fields.pop("rope_theta")
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        **fields,
    }
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def projection_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(in, out) widths of the seven projections."""
    width, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    return {
        "q_proj": (width, query),
        "k_proj": (width, shared),
        "v_proj": (width, shared),
        "o_proj": (query, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`.

    Raises:
      ConfigError: it does not hold one.
    """
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} holds no JSON object")
    return raw


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, on the host.

    Raises:
      ConfigError: the file is cut short, or is no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]), safe_open(file, framework="flax") as handle:
            return {name: np.asarray(handle.get_tensor(name)) for name in handle.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(f"{file} cannot be read: {error}; fetch the whole file again") from None


def _read_safetensors(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder} has no *.safetensors file; pickled weights are not read because they can run code")
    tensors: dict[str, np.ndarray] = {}
    # Kept on the host: stacked and cast there, each parameter is moved to the device once.
    for file in files:
        tensors |= read_tensors(file)
    return tensors


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model folder, through transformers.

    Raises:
      ConfigError: there is none, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    folder = resolve_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} has no tokenizer that transformers can read: {str(error).splitlines()[0]}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{folder}: the tokenizer has no end-of-sequence token, so a response could not end")
    return tokenizer
