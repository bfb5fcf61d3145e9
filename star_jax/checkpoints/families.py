"""The families of models that are read, in one table.

A family is a row of `FAMILIES` when its block is put together differently. Everything else (windows, rotary scaling,
soft caps, multipliers, layers without positions) is a value in config.json and read the same way for all
(`checkpoints.hf_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from star_jax.models.architecture import TransformerConfig

PRE_NORMS = {"pre_attention_norm": "input_layernorm", "pre_mlp_norm": "post_attention_layernorm"}
POST_NORMS = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
BOTH_NORMS = {
    **{"pre_attention_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"},
    **{"pre_mlp_norm": "pre_feedforward_layernorm", "post_mlp_norm": "post_feedforward_layernorm"},
}
GLM_NORMS = {
    **{"pre_attention_norm": "input_layernorm", "post_attention_norm": "post_self_attn_layernorm"},
    **{"pre_mlp_norm": "post_attention_layernorm", "post_mlp_norm": "post_mlp_layernorm"},
}
"""Norm of a block -> its name in a layer of a checkpoint."""


class ExpertPaths(NamedTuple):
    """Modules of a mixture of experts in a layer of a checkpoint; `{}` stands for the number of an expert."""

    router: str
    gate: str
    up: str
    down: str


class Family(NamedTuple):
    """How the blocks of a family are put together; the defaults are Llama's.

    Attributes:
      norms: norm of a block -> its name in a layer of a checkpoint.
      qk_norm, norm_offset, fused, scaled_embedding: see `Architecture`.
      qkv_bias: query, key and value have a bias whatever config.json says.
      partly_rotated: `partial_rotary_factor` is heeded.
      fused_mlp, interleaved: see `Architecture`.
      output_bias: field that says whether the projection behind attention has a bias; empty where none has.
      only_local_rotated: where layers have a window, those that have none are without positions.
      experts: where a mixture of experts lies; None for none.
      rope_extra: parameters of rotary positions that it reads besides those of their type.
    """

    norms: Mapping[str, str] = PRE_NORMS
    qk_norm: str = "none"
    norm_offset: float = 0.0
    qkv_bias: bool = False
    fused: bool = False
    scaled_embedding: bool = False
    partly_rotated: bool = False
    fused_mlp: bool = False
    interleaved: bool = False
    output_bias: str = "attention_bias"
    only_local_rotated: bool = False
    experts: ExpertPaths | None = None
    rope_extra: tuple[str, ...] = ()


def _expert_paths(root: str, gate: str, up: str, down: str) -> ExpertPaths:
    return ExpertPaths(f"{root}.gate", *(f"{root}.experts.{{}}.{name}" for name in (gate, up, down)))


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "smollm3": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "ministral": Family(),
    "phi3": Family(fused=True, partly_rotated=True),
    "olmo2": Family(norms=POST_NORMS, qk_norm="width"),
    "gemma2": Family(norms=BOTH_NORMS, norm_offset=1.0, scaled_embedding=True),
    "gemma3_text": Family(norms=BOTH_NORMS, qk_norm="head", norm_offset=1.0, scaled_embedding=True),
    "gemma": Family(norm_offset=1.0, scaled_embedding=True),
    "granite": Family(),
    "ministral3": Family(rope_extra=("llama_4_scaling_beta",)),
    "olmo3": Family(norms=POST_NORMS, qk_norm="width"),
    "seed_oss": Family(output_bias="attention_out_bias"),
    "exaone4": Family(norms=POST_NORMS, qk_norm="head", only_local_rotated=True),
    "mixtral": Family(experts=_expert_paths("block_sparse_moe", "w1", "w3", "w2")),
    "qwen3_moe": Family(qk_norm="head", experts=_expert_paths("mlp", "gate_proj", "up_proj", "down_proj")),
    "glm4": Family(norms=GLM_NORMS, fused_mlp=True, partly_rotated=True, interleaved=True, output_bias=""),
}
"""`model_type` -> family."""

WRAPPERS: Mapping[str, tuple[str, ...]] = {"gemma3": ("gemma3_text",), "mistral3": ("mistral", "ministral3")}
"""`model_type` of models that read images as well -> the families that their `text_config` may be of."""

_UNLIKE_LAYERS = "its layers differ in shape: those that see everything have wider heads than those with a window"
_DELTA_NET = "most of its layers are gated delta nets, which keep a state where attention has keys and values"
OUT_OF_REACH: Mapping[str, str] = {
    **dict.fromkeys(("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _UNLIKE_LAYERS),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _DELTA_NET),
}
"""`model_type` of families that people ask for -> why the decoder, one block for all layers, cannot be theirs."""


def expert_paths(config: TransformerConfig) -> ExpertPaths:
    """Where the experts of a model lie in a checkpoint."""
    found = (family for family in FAMILIES.values() if family.experts is not None)
    return next(one.experts for one in found if one.experts and one.qk_norm == config.architecture.qk_norm)


def usual_norms(norms: tuple[str, ...]) -> Mapping[str, str]:
    """Norm of a block -> its name in a checkpoint of the first family with these norms."""
    return next(family.norms for family in FAMILIES.values() if tuple(family.norms) == norms)


def norm_paths(config: TransformerConfig) -> Mapping[str, str]:
    """Norm of a block -> its name in a layer of a checkpoint."""
    architecture = config.architecture
    names = architecture.norm_names or usual_norms(architecture.norms).values()
    named = dict(zip(architecture.norms, names, strict=True))
    extra = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return named if config.architecture.qk_norm == "none" else {**named, **extra}
