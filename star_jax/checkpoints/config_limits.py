"""What the fields of a `config.json` may be: types and stated limits, checked before anybody computes with them.

A file may say anything. Layers are the only number by which a list is made as long as the number says; the other limits
are a hundred times what the largest published models have.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from star_jax.checkpoints.files import read_object
from star_jax.documents import NUMBER, OBJECT, SWITCH, TEXT, WHOLE, Kind, UnreadableError, check_fields, list_of
from star_jax.errors import ConfigError


def _at_most(most: int) -> Kind:
    words = f"a whole number from 1 to {most:,}"
    return Kind(words, lambda value: WHOLE.holds(value) and 1 <= value <= most).or_null()


SIZES: dict[str, Kind] = {
    "vocab_size": _at_most(2**28),
    "hidden_size": _at_most(2**22),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), _at_most(2**24)),
    "num_hidden_layers": _at_most(10_000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), _at_most(2**16)),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), _at_most(2**16)),
    "max_position_embeddings": _at_most(2**31),
}
"""Fields that count something there is at least one of."""

_POSITIVE = Kind("a positive number", lambda value: NUMBER.holds(value) and value > 0)

FACTORS: dict[str, Kind] = {
    "rms_norm_eps": _POSITIVE,
    **dict.fromkeys(("query_pre_attn_scalar", "attn_logit_softcapping"), _POSITIVE.or_null()),
    **dict.fromkeys(("final_logit_softcapping", "attention_multiplier", "logits_scaling"), _POSITIVE.or_null()),
}
"""Fields that multiply or divide; at 0, or below, nothing would be left of what they act on."""

FIELDS: dict[str, Kind] = {
    "model_type": TEXT.or_null(),
    **SIZES,
    **FACTORS,
    "original_max_position_embeddings": WHOLE.or_null(),
    **dict.fromkeys(("sliding_window", "max_window_layers", "no_rope_layer_interval"), WHOLE.or_null()),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "partial_rotary_factor"), NUMBER.or_null()),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), SWITCH.or_null()),
    **dict.fromkeys(("use_sliding_window", "use_bidirectional_attention"), SWITCH.or_null()),
    **dict.fromkeys(("hidden_act", "hidden_activation"), TEXT.or_null()),
    **dict.fromkeys(("rope_parameters", "rope_scaling", "quantization_config"), OBJECT.or_null()),
    "layer_types": list_of(TEXT).or_null(),
    "no_rope_layers": list_of(WHOLE).or_null(),
}
"""Field -> what it must be; fields that are not named here are anything."""


def check_config_fields(raw: Mapping[str, Any]) -> None:
    """Refuses a field that is of another type, or beyond what any model has.

    Raises:
      ConfigError: naming the field.
    """
    try:
        check_fields(raw, FIELDS)
        for name in ("rope_parameters", "rope_scaling"):
            _check_rope(raw.get(name) or {})
    except UnreadableError as error:
        raise ConfigError(f"the file {error.problem}") from None


def check_sizes(fields: Mapping[str, Any]) -> None:
    """Refuses sizes and factors of a configuration in which what the file leaves out has been filled in.

    Raises:
      ConfigError: naming the field.
    """
    try:
        check_fields(fields, SIZES | FACTORS)
    except UnreadableError as error:
        raise ConfigError(f"the configuration {error.problem}") from None


def check_config_file(folder: Path) -> None:
    """`check_config_fields` of a folder's config.json, where it has one; whoever reads the folder next may trust it.

    Raises:
      ConfigError: naming file and field, or the file cannot be read.
    """
    file = folder / "config.json"
    if not file.is_file():
        return
    raw = read_object(file)
    try:
        check_config_fields(raw)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _check_rope(parameters: Mapping[str, Any]) -> None:
    """Frequencies of rotary positions: numbers, lists of numbers, names, or an object of them for a kind of layer."""
    for name, value in parameters.items():
        if isinstance(value, dict):
            _check_rope(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            check_fields(parameters, {name: NUMBER})
        elif isinstance(value, list):
            check_fields(parameters, {name: list_of(NUMBER)})
