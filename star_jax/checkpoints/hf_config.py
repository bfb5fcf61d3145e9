"""The families of models that are read, in one table, and a Hugging Face `config.json` as a `TransformerConfig`.

A family is a row of `FAMILIES` when its block is put together differently. Everything else (windows, rotary
scaling, soft caps, biases, layers without positions) is a value in config.json and read the same way for all.
Transformers fills in what a file leaves out and translates older spellings. A field that is not known here is an
error that names it: it may change the mathematics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from star_jax.checkpoints.config_fields import check_config_fields
from star_jax.checkpoints.files import on_one_line, read_object, without_advice
from star_jax.errors import ConfigError
from star_jax.models.architecture import Architecture, TransformerConfig
from star_jax.models.rotary import Rope, rope_from_hf, unrotated
from star_jax.ops.pointwise import ACTIVATIONS

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
    "phi3": Family(fused=True, partly_rotated=True),
    "olmo2": Family(norms=POST_NORMS, qk_norm="width"),
    "gemma2": Family(norms=BOTH_NORMS, norm_offset=1.0, scaled_embedding=True),
    "gemma3_text": Family(norms=BOTH_NORMS, qk_norm="head", norm_offset=1.0, scaled_embedding=True),
}
"""`model_type` -> family."""

_READ = """
model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
head_dim rms_norm_eps tie_word_embeddings max_position_embeddings original_max_position_embeddings hidden_act
hidden_activation attention_bias mlp_bias rope_parameters rope_scaling rope_theta rope_local_base_freq
partial_rotary_factor sliding_window use_sliding_window max_window_layers layer_types sliding_window_pattern
_sliding_window_pattern no_rope_layers no_rope_layer_interval query_pre_attn_scalar attn_logit_softcapping
final_logit_softcapping use_bidirectional_attention quantization_config
"""
READ = frozenset(_READ.split())
"""Fields of config.json that are taken into account, here or by Transformers for older spellings."""

_INERT = """
architectures auto_map torch_dtype dtype transformers_version _name_or_path name_or_path use_cache
cache_implementation initializer_range pad_token_id bos_token_id eos_token_id sep_token_id decoder_start_token_id
pretraining_tp chunk_size_feed_forward is_encoder_decoder is_decoder id2label label2id problem_type
output_attentions output_hidden_states return_dict task_specific_params attention_dropout resid_pdrop embd_pdrop
_attn_implementation _attn_implementation_autoset attn_implementation unsloth_fixed unsloth_version
transformers.js_config sliding_window_size full_attn_mod interpolate_factor is_llama_config
tokenizer_class
"""
INERT = frozenset(_INERT.split())
"""Fields that do not change what a forward pass computes. The base model's own dropout acts in its pretraining only:
here it is frozen, and what is dropped is the adapter's input. The last four are in published folders of Gemma 2,
Phi-4 and SmolLM2, and no code reads them."""

ONLY_WHERE_DECLARED = (
    *("sliding_window", "layer_types", "no_rope_layers", "query_pre_attn_scalar", "attention_bias", "mlp_bias"),
    *("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "no_rope_layer_interval"),
    *("sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq"),
)
"""Fields that change the mathematics of the families that have them; set for another family, they are an error."""


OLD_SPELLINGS = {"gemma3_text": ("sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq")}
"""Fields that a family has no more, and Transformers still translates."""

KNOWN_OFF = frozenset(
    (
        *("lm_head_bias", "rope_interleaved", "use_mrope", "use_sliding_window", "attention_bias", "mlp_bias"),
        *("use_bidirectional_attention", "sliding_window"),
    )
)
"""Fields that mean nothing where they are false."""


def read_config(
    folder: Path, dtype: str, longest: int | None = None, ignored_fields: Collection[str] = ()
) -> TransformerConfig:
    """Reads `config.json` of a model folder.

    Args:
      folder: of the model.
      dtype: type the weights are to be stored and multiplied in.
      longest: tokens of the longest sequence that will be read; chooses between LongRoPE's two sets of factors.
      ignored_fields: fields that the user knows to be harmless.

    Raises:
      ConfigError: the model is of a family that is not known, or a field asks for mathematics that the decoder does
        not do; the message names the field.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{folder} has no config.json; a model is a Hugging Face model folder")
    raw = read_object(file)
    try:
        check_config_fields(raw)
        return _config(_normalised(raw, folder, ignored_fields), dtype, longest)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Of fields that only some kinds of rotary positions have, and of values that contradict each other.
        raise ConfigError(f"{file} cannot be used ({type(error).__name__}: {on_one_line(error)})") from error


def norm_paths(config: TransformerConfig) -> Mapping[str, str]:
    """Norm of a block -> its name in a layer of a checkpoint."""
    named = {tuple(family.norms): family.norms for family in FAMILIES.values()}[config.architecture.norms]
    extra = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return named if config.architecture.qk_norm == "none" else {**named, **extra}


def _normalised(raw: Mapping[str, Any], folder: Path, ignored_fields: Collection[str]) -> Any:
    """The configuration as Transformers reads it, every default filled in."""
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        advice = (
            ", and the remote code that its auto_map names is not run, since it could do anything on this machine"
            if raw.get("auto_map")
            else ""
        )
        raise ConfigError(f"model_type is {kind!r}{advice}; the families that are read are {', '.join(FAMILIES)}")
    if raw.get("quantization_config"):
        raise ConfigError(
            "quantization_config says that the weights are stored quantised, which is not read; take the "
            "unquantised checkpoint and set model.quantization"
        )
    # A switch that is off is as telling as one that is on, unless it is known.
    set_fields = [
        name
        for name, value in raw.items()
        if value is not None and value != [] and value != {} and not (value is False and name in KNOWN_OFF)
    ]
    unknown = [name for name in set_fields if name not in (READ | INERT).union(ignored_fields)]
    if unknown:
        raise ConfigError(_unknown(kind, unknown))
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in raw]
    if missing:
        raise ConfigError(f"the field {missing[0]!r} is missing")
    with without_advice():
        from transformers import AutoConfig  # takes seconds to import

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except KeyError as error:
        raise ConfigError(f"Transformers takes this {kind} for a {error}, which is no family that is read") from error
    except Exception as error:  # a strict dataclass's errors, KeyErrors, ValueErrors: all of them say what is wrong
        raise ConfigError(f"cannot be read: {on_one_line(error)}") from error
    if config.model_type != kind:
        raise ConfigError(f"Transformers reads this {kind} as {config.model_type}, which is no family that is read")
    # What a class does not declare, its models do not read; a width of heads is the exception.
    declared = [field.name for field in dataclasses.fields(config)] + ["model_type", "head_dim"]
    allowed = {*declared, *ignored_fields, *OLD_SPELLINGS.get(kind, ())}
    foreign = [name for name in set_fields if name in ONLY_WHERE_DECLARED and name not in allowed]
    if foreign:
        raise ConfigError(_unknown(kind, foreign))
    return SimpleNamespace(**{name: getattr(config, name) for name in declared if hasattr(config, name)})


def _unknown(kind: str, names: Sequence[str]) -> str:
    return (
        f"{', '.join(names)}: not known for {kind}, and may change what the model computes; where it does not, "
        "name it in model.ignored_fields"
    )


def _config(hf: Any, dtype: str, longest: int | None) -> TransformerConfig:
    family = FAMILIES[hf.model_type]
    if getattr(hf, "use_bidirectional_attention", None):
        raise ConfigError("use_bidirectional_attention is set; this decoder is causal")
    activation = getattr(hf, "hidden_activation", None) or getattr(hf, "hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"the activation is {activation!r}; {', '.join(ACTIVATIONS)} are known")
    if hf.num_attention_heads % hf.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads is {hf.num_attention_heads}, no multiple of num_key_value_heads, which is "
            f"{hf.num_key_value_heads}"
        )
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    ropes, layer_ropes = _ropes(hf, head_dim, longest)
    scalar = getattr(hf, "query_pre_attn_scalar", None)
    return TransformerConfig(
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        num_hidden_layers=hf.num_hidden_layers,
        num_attention_heads=hf.num_attention_heads,
        num_key_value_heads=hf.num_key_value_heads,
        head_dim=head_dim,
        rms_norm_eps=hf.rms_norm_eps,
        tie_word_embeddings=bool(hf.tie_word_embeddings),
        max_position_embeddings=hf.max_position_embeddings,
        hidden_act=activation,
        windows=_windows(hf),
        ropes=ropes,
        layer_ropes=layer_ropes,
        attention_scale=None if scalar is None else scalar**-0.5,
        attention_softcap=getattr(hf, "attn_logit_softcapping", None),
        logit_softcap=getattr(hf, "final_logit_softcapping", None),
        architecture=Architecture(
            norms=tuple(family.norms),
            qk_norm=family.qk_norm,  # type: ignore[arg-type]
            norm_offset=family.norm_offset,
            biases=_biases(hf, family),
            fused=family.fused,
            scaled_embedding=family.scaled_embedding,
        ),
        dtype=dtype,
    )


def _biases(hf: Any, family: Family) -> tuple[str, ...]:
    attention, mlp = getattr(hf, "attention_bias", False), getattr(hf, "mlp_bias", False)
    return (
        *(("q_proj", "k_proj", "v_proj") if attention or family.qkv_bias else ()),
        *(("o_proj",) if attention else ()),
        *(("gate_proj", "up_proj", "down_proj") if mlp else ()),
    )


def _windows(hf: Any) -> tuple[int | None, ...]:
    window = getattr(hf, "sliding_window", None) if getattr(hf, "use_sliding_window", True) else None
    # A family without layer types has the window in every layer.
    everywhere = "full_attention" if window is None else "sliding_attention"
    kinds = getattr(hf, "layer_types", None) or [everywhere] * hf.num_hidden_layers
    other = set(kinds) - {"sliding_attention", "full_attention"}
    if other:
        raise ConfigError(f"layer_types has {sorted(other)[0]!r}; this decoder knows sliding_attention, full_attention")
    if "sliding_attention" in kinds and window is None:
        raise ConfigError("layer_types has sliding_attention, and no sliding_window is set")
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if "sliding_attention" in kinds else ()


def _ropes(hf: Any, head_dim: int, longest: int | None) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """The kinds of rotary positions, and the kind of each layer; () where all layers are alike."""
    parameters, most = hf.rope_parameters, hf.max_position_embeddings
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    partial = {kind.get("partial_rotary_factor") or 1.0 for kind in (parameters, *nested)} - {1.0}
    if partial and not FAMILIES[hf.model_type].partly_rotated:
        raise ConfigError(f"partial_rotary_factor is {partial.pop()}; {hf.model_type} rotates whole heads")
    if "full_attention" in parameters:
        kinds = sorted(kind for kind in parameters if kind in hf.layer_types)
        ropes = tuple(rope_from_hf(parameters[kind], head_dim, most, longest) for kind in kinds)
        chosen = [kinds.index(kind) for kind in hf.layer_types]
    else:
        ropes = (rope_from_hf(parameters, head_dim, most, longest), unrotated(head_dim))
        rotated = getattr(hf, "no_rope_layers", None) or [1] * hf.num_hidden_layers
        chosen = [0 if flag else 1 for flag in rotated[: hf.num_hidden_layers]]
    if len(set(chosen)) == 1:
        return (ropes[chosen[0]],), ()
    return ropes, tuple(chosen)
