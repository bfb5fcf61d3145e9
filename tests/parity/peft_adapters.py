"""Adapters that PEFT makes, of every kind that is read here, with random factors on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tiny_models import FAMILIES, randomise, torch_model

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

FILTER = "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
"""PEFT asks transformers for an attribute by its old name."""

ADAPTER_ROW = "adapter"
"""Name under which a test records (way, family, largest error) for the table at the end."""

RANK, ALPHA = 5, 12
B_SPREAD = 0.1
"""Deviation of random B: beside PEFT's A, it makes products that are smaller than a tiny model's weights but plain."""


def _patterns(first: str) -> dict[str, Any]:
    return {
        "target_modules": "all-linear",
        "rank_pattern": {first: 2, r".*\.1\.mlp\.down_proj": 7},
        "alpha_pattern": {"o_proj": 3, rf"layers\.2\..*{first}": 20.5},
    }


KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "plain": lambda first: {"target_modules": "all-linear"},
    "some": lambda first: {"target_modules": [first, "down_proj"]},
    "rslora": lambda first: {"target_modules": "all-linear", "use_rslora": True},
    "patterns": _patterns,
    "rslora-patterns": lambda first: _patterns(first) | {"use_rslora": True},
    "regex": lambda first: {"target_modules": rf"model\.layers\.(0|2)\..*({first}|down_proj)"},
    "exclude": lambda first: {"target_modules": "all-linear", "exclude_modules": r".*\.1\..*|.*o_proj"},
    "layers": lambda first: {"target_modules": [first, "o_proj"], "layers_to_transform": [0, 2]},
}
"""Kind -> fields of PEFT's `LoraConfig`, given the name of an attention's first projection."""


def tiny_base(family: str, seed: int, folder: Path) -> PreTrainedModel:
    """A model of random weights, in Transformers and in a folder; always of one shape, to be compiled once."""
    model = torch_model(FAMILIES[family](np.random.default_rng(0)).config)
    randomise(model, seed)
    model.save_pretrained(folder)
    return model


def first_projection(model: PreTrainedModel) -> str:
    """`q_proj`, or the projection that it is a part of."""
    return "qkv_proj" if model.config.model_type == "phi3" else "q_proj"


def peft_adapter(model: PreTrainedModel, kind: str) -> PeftModel:
    """The model with an adapter whose A is PEFT's own and whose B is random; changes the model itself."""
    import torch
    from peft import LoraConfig, get_peft_model

    fields = KINDS[kind](first_projection(model))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM", **fields)
    adapted = get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_(False)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=B_SPREAD)
    return adapted
