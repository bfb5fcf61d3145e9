"""Writes a random Llama and a random LoRA as Hugging Face and PEFT folders, for both sides to read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from workload import LORA_SPREAD, SEED, WEIGHT_SPREAD, Workload


def write_folders(workload: Workload, folder: Path) -> None:
    """Writes `folder/model` and `folder/adapter`, both float32.

    Matrices of the model are N(0, 0.08²) and norms 1; A is Kaiming-uniform as PEFT draws it, and B is N(0, 0.02²), so
    that the adapter changes what the model says.
    """
    rng = np.random.default_rng(SEED)
    _write_model(rng, workload, folder / "model")
    write_adapter(rng, workload, folder / "adapter", LORA_SPREAD)


def _normal(rng: np.random.Generator, spread: float, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(spread)


def _write_model(rng: np.random.Generator, workload: Workload, folder: Path) -> None:
    shape = workload.shape
    tensors = {
        "model.embed_tokens.weight": _normal(rng, WEIGHT_SPREAD, shape.vocab, shape.width),
        "lm_head.weight": _normal(rng, WEIGHT_SPREAD, shape.vocab, shape.width),
        "model.norm.weight": np.ones(shape.width, np.float32),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = np.ones(shape.width, np.float32)
        for name, (fan_in, features) in shape.projections.items():
            tensors[f"{prefix}.{name}.weight"] = _normal(rng, WEIGHT_SPREAD, features, fan_in)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config() | {"dtype": "float32"}, indent=1), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def write_adapter(rng: np.random.Generator, workload: Workload, folder: Path, spread: float) -> None:
    """Writes a LoRA on all projections whose B is N(0, spread²)."""
    shape, rank = workload.shape, workload.rank
    tensors = {}
    for layer in range(shape.layers):
        for name, (fan_in, features) in shape.projections.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            bound = fan_in**-0.5
            tensors[f"{path}.lora_A.weight"] = rng.uniform(-bound, bound, (rank, fan_in)).astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = _normal(rng, spread, features, rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": workload.alpha,
        "lora_dropout": workload.dropout,
        "target_modules": [name.split(".")[1] for name in shape.projections],
        "bias": "none",
        "inference_mode": True,
    }
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
