"""PEFT adapter folders: adapter_config.json and adapter_model.safetensors, in and out.

PEFT stores A as r×in and B as out×r, one pair a module, under `base_model.model.<module path>`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from star_jax.config import ConfigError
from star_jax.models.checkpoint_hf import MODULE_PATHS, projection_shapes, read_object, read_tensors
from star_jax.models.lora import Adapter
from star_jax.models.transformer import TransformerConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

_REFUSED_WHEN_SET = (
    "use_dora",
    "use_rslora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "exclude_modules",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "monteclora_config",
    "velora_config",
    "kasa_config",
    "lora_ga_config",
)

_CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` under which the factors belong to a base model that was changed as well."""


def load_adapter(folder: Path, config: TransformerConfig) -> tuple[Adapter, dict[str, Any]]:
    """Reads a PEFT LoRA folder.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      config: of the base model, for the shapes.

    Returns:
      The adapter, float32, and PEFT's configuration as read.

    Raises:
      ConfigError: a file is missing, or the adapter is of a kind that is not supported; the field is named.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; an adapter is a PEFT folder with that file")
    raw = read_object(folder / CONFIG_FILE)
    refused = [name for name in _REFUSED_WHEN_SET if raw.get(name)]
    if raw.get("peft_type") != "LORA":
        refused.append(f"peft_type {raw.get('peft_type')}")
    if raw.get("bias", "none") != "none":
        refused.append("bias")
    if str(raw.get("init_lora_weights")).lower().startswith(_CHANGING_THE_BASE):
        refused.append(f"init_lora_weights {raw['init_lora_weights']}")
    if refused:
        raise ConfigError(f"{folder / CONFIG_FILE}: {', '.join(refused)} is not supported; plain LoRA is")
    missing = [name for name in ("r", "lora_alpha") if name not in raw]
    if missing:
        raise ConfigError(f"{folder / CONFIG_FILE}: the field {missing[0]!r} is missing")
    tensors = read_tensors(folder / WEIGHTS_FILE)
    rank, depth = raw["r"], config.num_hidden_layers
    weights, scale = {}, {}

    def take(name: str, shape: tuple[int, int]) -> np.ndarray:
        tensor = tensors.pop(name, None)
        if tensor is None or tensor.shape != shape:
            found = "missing" if tensor is None else f"of shape {tensor.shape}"
            raise ConfigError(f"{folder / WEIGHTS_FILE}: the tensor {name} is {found}; {shape} is expected")
        return tensor.astype(np.float32).T

    for name, (fan_in, features) in projection_shapes(config).items():
        keys = [_keys(layer, name) for layer in range(depth)]
        if keys[0][0] not in tensors:
            continue
        a = np.stack([take(a_key, (rank, fan_in)) for a_key, _ in keys])
        b = np.stack([take(b_key, (features, rank)) for _, b_key in keys])
        weights[name] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        scale[name] = {"scale": jnp.full((depth,), raw["lora_alpha"] / rank, jnp.float32)}
    if tensors or not weights:
        left = ", ".join(sorted(tensors)[:3]) or "none"
        raise ConfigError(f"{folder / WEIGHTS_FILE}: tensors that match no projection of the model: {left}")
    return Adapter({"layers": weights}, {"layers": scale}), raw


def save_adapter(adapter: Adapter, folder: Path, *, base_model: str, dropout: float) -> None:
    """Writes an adapter as a PEFT folder.

    Args:
      adapter: every layer of it must have the same scale, as PEFT's plain config can say.
      folder: made if it is not there.
      base_model: what `base_model_name_or_path` says.
      dropout: what `lora_dropout` says.
    """
    from safetensors.numpy import save_file

    layers = adapter.weights["layers"]
    ranks = {factors["a"].shape[2] for factors in layers.values()}
    scales = {float(value) for entry in adapter.scale["layers"].values() for value in entry["scale"]}
    if len(ranks) != 1 or len(scales) != 1:
        raise ConfigError("an adapter whose layers differ in rank or scale cannot be written as plain LoRA")
    (rank,), (scale,) = ranks, scales
    tensors = {}
    for name, factors in layers.items():
        a, b = np.asarray(factors["a"]), np.asarray(factors["b"])
        for layer in range(a.shape[0]):
            a_key, b_key = _keys(layer, name)
            tensors[a_key] = np.ascontiguousarray(a[layer].T)
            tensors[b_key] = np.ascontiguousarray(b[layer].T)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": scale * rank,
        "lora_dropout": dropout,
        "target_modules": list(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _keys(layer: int, name: str) -> tuple[str, str]:
    stem = f"base_model.model.model.layers.{layer}.{MODULE_PATHS[name]}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
