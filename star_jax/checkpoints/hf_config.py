"""A Hugging Face `config.json` as a `TransformerConfig`.

Transformers fills in what a file leaves out and translates older spellings. A field that may change the mathematics
and is not known is an error that names it; those that change nothing are named in one warning
(`checkpoints.config_fields`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from star_jax.checkpoints.config_fields import declared_fields, leftover_fields, rope_leftovers
from star_jax.checkpoints.config_limits import check_config_fields, check_sizes
from star_jax.checkpoints.families import FAMILIES, OUT_OF_REACH, WRAPPERS, Family, usual_norms
from star_jax.checkpoints.files import on_one_line, read_object, require_model, without_advice
from star_jax.errors import ConfigError
from star_jax.models.architecture import Architecture, Experts, TransformerConfig
from star_jax.models.rotary import Rope, rope_from_hf, unrotated
from star_jax.ops.pointwise import ACTIVATIONS

_log = logging.getLogger(__name__)

NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers")
"""Fields whose absence is no default but a mistake."""


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
        not do, or two fields contradict each other; the message names the field.
    """
    require_model(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"{folder} has no config.json; a model is a Hugging Face model folder")
    raw = read_object(file)
    try:
        text = _text_part(raw)
        check_config_fields(raw)
        check_config_fields(text)
        hf, leftover = _normalised(raw, text, folder, ignored_fields)
        _check_values(text, hf)
        config = _config(hf, dtype, longest)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # Of fields that only some kinds of rotary positions have, and of values that contradict each other.
        raise ConfigError(f"{file} cannot be used ({type(error).__name__}: {on_one_line(error)})") from error
    if leftover:
        _log.warning("%s: passed over, because nothing reads it for %s: %s", file, hf.model_type, ", ".join(leftover))
    return config


def _text_part(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says of the language model: all of it, or `text_config` where images are read as well."""
    kind = raw.get("model_type")
    if kind not in FAMILIES and kind not in WRAPPERS:
        advice = (
            ", and the remote code that its auto_map names is not run, since it could do anything on this machine"
            if raw.get("auto_map")
            else ""
        )
        reason = OUT_OF_REACH.get(str(kind))
        advice += f"; {reason}" if reason else ""
        known = ", ".join([*FAMILIES, *WRAPPERS])
        raise ConfigError(f"model_type is {kind!r}{advice}; the families that are read are {known}")
    text = raw if kind in FAMILIES else raw.get("text_config")
    if not isinstance(text, Mapping):
        raise ConfigError(f"text_config is {text!r}; for {kind} it holds the fields of the language model")
    for part in (raw, text):
        if part.get("quantization_config"):
            raise ConfigError(_quantised(part["quantization_config"]))
    missing = [name for name in NEEDED if name not in raw] if kind in FAMILIES else []
    if missing:
        raise ConfigError(f"the field {missing[0]!r} is missing")
    return text


def _quantised(found: Any) -> str:
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    return (
        "quantization_config says that the weights are stored quantised, which is not read; take the unquantised "
        f"checkpoint and set model.quantization{f' (here the method is {method})' if method else ''}"
    )


def _normalised(
    raw: Mapping[str, Any], text: Mapping[str, Any], folder: Path, ignored: Collection[str]
) -> tuple[Any, list[str]]:
    """The language model's fields as Transformers reads them, every default filled in; and those that nothing reads."""
    with without_advice():
        from transformers import AutoConfig  # takes seconds to import
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    whole, kind = str(raw["model_type"]), text.get("model_type", WRAPPERS.get(raw["model_type"], ("",))[0])
    # Transformers reads one as the other.
    kind = "ministral" if kind == "mistral" and "layer_types" in text and whole in FAMILIES else kind
    if whole in WRAPPERS and kind not in WRAPPERS[whole]:
        raise ConfigError(f"text_config has model_type {kind!r}; for {whole}, {' and '.join(WRAPPERS[whole])} are read")
    leftover = leftover_fields(text, CONFIG_MAPPING[kind], ignored)
    if whole in WRAPPERS:
        leftover = [f"text_config.{name}" for name in leftover]
        leftover = leftover_fields(raw, CONFIG_MAPPING[whole], ignored) + leftover
    leftover += rope_leftovers(text)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except KeyError as error:
        raise ConfigError(f"Transformers takes this {kind} for a {error}, which is no family that is read") from error
    except Exception as error:  # a strict dataclass's errors, KeyErrors, ValueErrors: all of them say what is wrong
        raise ConfigError(f"cannot be read: {on_one_line(error)}") from error
    part = config.text_config if whole in WRAPPERS else config
    if part.model_type != kind:
        raise ConfigError(f"Transformers reads this {kind} as {part.model_type}, which is no family that is read")
    fields = {name: getattr(part, name) for name in declared_fields(type(part)) if hasattr(part, name)}
    # Embedding and head are tied by the outermost configuration.
    return SimpleNamespace(**fields | {"tie_word_embeddings": config.tie_word_embeddings, "wrapper": whole}), leftover


def _check_values(text: Mapping[str, Any], hf: Any) -> None:
    """Refuses sizes that no model has, also those filled in, and special tokens that the vocabulary does not have."""
    check_sizes(vars(hf))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = text.get(name)
        tokens = value if isinstance(value, list) else [] if value is None else [value]
        # An old way to say that there is none.
        none = (-1,) if name != "eos_token_id" else ()
        for token in tokens:
            if (
                not isinstance(token, int)
                or isinstance(token, bool)
                or not (token in none or 0 <= token < hf.vocab_size)
            ):
                raise ConfigError(
                    f"{name} is {value!r}, and the vocabulary has tokens 0 to {hf.vocab_size - 1} (vocab_size); "
                    "correct the one that is wrong"
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
    uneven = {rope.width or head_dim for rope in ropes if (rope.width or head_dim) % 2}
    if uneven:
        raise ConfigError(
            f"{uneven.pop()} entries of a head of {head_dim} (head_dim) would be rotated; they go in pairs"
        )
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
        attention_scale=getattr(hf, "attention_multiplier", None) if scalar is None else scalar**-0.5,
        attention_softcap=getattr(hf, "attn_logit_softcapping", None),
        logit_softcap=getattr(hf, "final_logit_softcapping", None),
        embedding_multiplier=getattr(hf, "embedding_multiplier", 1.0),
        residual_multiplier=getattr(hf, "residual_multiplier", 1.0),
        logit_divisor=getattr(hf, "logits_scaling", 1.0),
        experts=_experts(hf, family),
        module_root="model.language_model" if hf.wrapper in WRAPPERS else "model",
        architecture=Architecture(
            norms=tuple(family.norms),
            qk_norm=family.qk_norm,  # type: ignore[arg-type]
            norm_offset=family.norm_offset,
            biases=_biases(hf, family),
            fused=family.fused,
            scaled_embedding=family.scaled_embedding,
            fused_mlp=family.fused_mlp,
            interleaved=family.interleaved,
            norm_names=() if usual_norms(tuple(family.norms)) == family.norms else tuple(family.norms.values()),
        ),
        dtype=dtype,
    )


def _experts(hf: Any, family: Family) -> Experts | None:
    if family.experts is None:
        return None
    if getattr(hf, "mlp_only_layers", None) or getattr(hf, "decoder_sparse_step", 1) != 1:
        raise ConfigError("mlp_only_layers or decoder_sparse_step has layers without experts; all or none are read")
    count = hf.num_local_experts if hasattr(hf, "num_local_experts") else hf.num_experts
    inner = getattr(hf, "moe_intermediate_size", hf.intermediate_size)
    per_token = hf.num_experts_per_tok
    if not 1 <= per_token <= count:
        raise ConfigError(f"num_experts_per_tok is {per_token}, and there are {count} experts")
    return Experts(count, per_token, inner, bool(getattr(hf, "norm_topk_prob", True)))


def _biases(hf: Any, family: Family) -> tuple[str, ...]:
    attention, mlp = getattr(hf, "attention_bias", False), getattr(hf, "mlp_bias", False)
    return (
        *(("q_proj", "k_proj", "v_proj") if attention or family.qkv_bias else ()),
        *(("o_proj",) if getattr(hf, family.output_bias, False) else ()),
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
    parameters, most, family = hf.rope_parameters, hf.max_position_embeddings, FAMILIES[hf.model_type]
    extra = family.rope_extra
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    partial = {kind.get("partial_rotary_factor") or 1.0 for kind in (parameters, *nested)} - {1.0}
    if partial and not family.partly_rotated:
        raise ConfigError(f"partial_rotary_factor is {partial.pop()}; {hf.model_type} rotates whole heads")
    if "full_attention" in parameters:
        kinds = sorted(kind for kind in parameters if kind in hf.layer_types)
        ropes = tuple(rope_from_hf(parameters[kind], head_dim, most, longest, extra) for kind in kinds)
        chosen = [kinds.index(kind) for kind in hf.layer_types]
    else:
        ropes = (rope_from_hf(parameters, head_dim, most, longest, extra), unrotated(head_dim))
        rotated = getattr(hf, "no_rope_layers", None) or [1] * hf.num_hidden_layers
        if family.only_local_rotated and hf.sliding_window is not None:
            rotated = [int(kind == "sliding_attention") for kind in hf.layer_types]
        chosen = [0 if flag else 1 for flag in rotated[: hf.num_hidden_layers]]
    if len(set(chosen)) == 1:
        return (ropes[chosen[0]],), ()
    return ropes, tuple(chosen)
