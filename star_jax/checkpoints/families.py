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
"""Norm of a block -> its name in a layer of a checkpoint."""


class Family(NamedTuple):
    """How the blocks of a family are put together; the defaults are Llama's.

    Attributes:
      norms: norm of a block -> its name in a layer of a checkpoint.
      qk_norm, norm_offset, fused, scaled_embedding: see `Architecture`.
      qkv_bias: query, key and value have a bias whatever config.json says.
      partly_rotated: `partial_rotary_factor` is heeded.
    """

    norms: Mapping[str, str] = PRE_NORMS
    qk_norm: str = "none"
    norm_offset: float = 0.0
    qkv_bias: bool = False
    fused: bool = False
    scaled_embedding: bool = False
    partly_rotated: bool = False


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
}
"""`model_type` -> family."""

WRAPPERS: Mapping[str, tuple[str, ...]] = {}
"""`model_type` of models that read images as well -> the families that their `text_config` may be of."""


def norm_paths(config: TransformerConfig) -> Mapping[str, str]:
    """Norm of a block -> its name in a layer of a checkpoint."""
    named = {tuple(family.norms): family.norms for family in FAMILIES.values()}[config.architecture.norms]
    extra = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return named if config.architecture.qk_norm == "none" else {**named, **extra}
