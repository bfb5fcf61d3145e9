"""Fields of a Hugging Face `config.json`: which are read, which change nothing, and which are refused.

A field changes nothing where neither the family's configuration class nor its base class has it and no loading,
modelling, masking or rotary code of Transformers reads it. What such code reads is written down here; a test derives
it from the source of the Transformers that is installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from star_jax.checkpoints.families import WRAPPERS
from star_jax.errors import ConfigError
from star_jax.models.rotary import KNOWN_PARAMETERS

_READ = """
model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
head_dim rms_norm_eps tie_word_embeddings max_position_embeddings original_max_position_embeddings hidden_act
hidden_activation attention_bias mlp_bias rope_parameters rope_scaling rope_theta rope_local_base_freq
partial_rotary_factor sliding_window use_sliding_window max_window_layers layer_types sliding_window_pattern
_sliding_window_pattern no_rope_layers no_rope_layer_interval query_pre_attn_scalar attn_logit_softcapping
final_logit_softcapping use_bidirectional_attention quantization_config embedding_multiplier residual_multiplier
attention_multiplier logits_scaling attention_out_bias num_experts num_local_experts num_experts_per_tok
moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers
"""
READ = frozenset(_READ.split())
"""Fields of config.json that are taken into account, here or by Transformers for older spellings."""

_INERT = """
architectures auto_map torch_dtype dtype transformers_version _name_or_path name_or_path use_cache
cache_implementation initializer_range pad_token_id bos_token_id eos_token_id sep_token_id decoder_start_token_id
pretraining_tp chunk_size_feed_forward is_encoder_decoder is_decoder id2label label2id num_labels problem_type
output_attentions output_hidden_states return_dict task_specific_params attention_dropout resid_pdrop embd_pdrop
classifier_dropout hidden_dropout _attn_implementation _attn_implementation_autoset attn_implementation
_attn_implementation_internal _experts_implementation _experts_implementation_internal experts_implementation
gradient_checkpointing loss_type residual_dropout output_router_logits router_aux_loss_coef router_jitter_noise
init_std initializer_factor _commit_hash unsloth_fixed unsloth_version transformers.js_config sliding_window_size
full_attn_mod interpolate_factor is_llama_config tokenizer_class tie_last_hidden_states token_classification_bias
"""
INERT = frozenset(_INERT.split())
"""Fields that do not change what a forward pass computes, though a class or some code of Transformers has them. The
base model's own dropout acts in its pretraining only: here it is frozen, and what is dropped is the adapter's input."""

_MEANINGFUL = """
is_causal attention_chunk_size per_layer_config kv_sharing_modes
number_of_conv_states mlp_layer_types mtp_layer_types mtp_mlp_layer_types mtp_per_layer_config num_mtp_layers
mtp_hidden_states_first chain_hidden_post_norm logits_mup_width_multiplier unpadded_vocab_size first_k_dense_replace
text_config vision_config text_encoder decoder encoder generator transformers_weights configuration_files
quant_method is_quantized embed_dim num_heads _heterogeneity_spec _post_init_done _output_attentions
alibi clip_qkv logit_scale multi_query new_decoder_architecture parallel_attn qk_layernorm
use_parallel_residual use_qk_norm use_rope
"""
MEANINGFUL = frozenset(_MEANINGFUL.split())
"""Fields that are refused whatever the family: those that code which all families of Transformers go through reads,
and, in the last two lines, the mathematics of families that are not read here."""

ONLY_WHERE_DECLARED = frozenset(
    (
        *("sliding_window", "layer_types", "no_rope_layers", "query_pre_attn_scalar", "attention_bias", "mlp_bias"),
        *("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention", "no_rope_layer_interval"),
        *("sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq", "embedding_multiplier"),
        *("residual_multiplier", "attention_multiplier", "logits_scaling", "attention_out_bias"),
        *("num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "num_experts"),
        *("decoder_sparse_step", "mlp_only_layers"),
    )
)
"""Fields that change the mathematics of the families that have them; set for another family, they are an error."""

_OF_WRAPPERS = """
text_config vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id
eoi_token_id image_token_id projector_hidden_act vision_feature_layer multimodal_projector_bias spatial_merge_size
image_token
"""
OF_WRAPPERS = frozenset(_OF_WRAPPERS.split())
"""Fields of models that read images too: the language model, read by itself, and what images alone need."""

OLD_SPELLINGS = {"gemma3_text": ("sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq")}
"""Fields that a family has no more, and Transformers still translates."""

_OFF = """
lm_head_bias rope_interleaved use_mrope use_sliding_window attention_bias mlp_bias use_bidirectional_attention
sliding_window is_quantized use_qk_norm qk_layernorm alibi
"""
SAYS_NOTHING: Mapping[str, bool] = {**dict.fromkeys(_OFF.split(), False), "is_causal": True}
"""Field -> the value that means no more than its absence. A switch that is off is else as telling as one that is on."""


def set_fields(raw: Mapping[str, Any]) -> list[str]:
    """The fields that say something."""
    return [name for name, value in raw.items() if not _says_nothing(name, value)]


def _says_nothing(name: str, value: Any) -> bool:
    if value is None or value == [] or value == {}:
        return True
    if name == "layer_types" and isinstance(value, list):
        return all(kind == "full_attention" for kind in value)
    return isinstance(value, bool) and SAYS_NOTHING.get(name) is value


def declared_fields(config_class: Any) -> set[str]:
    """The fields that a class of Transformers declares; what it does not declare, its models do not read."""
    # The width of heads is the exception: models ask for it wherever it comes from.
    return {field.name for field in dataclasses.fields(config_class)} | {"model_type", "head_dim"}


def leftover_fields(raw: Mapping[str, Any], config_class: Any, ignored: Collection[str]) -> list[str]:
    """The fields that change nothing, and that nobody has named as such.

    Args:
      raw: config.json, or a part of it that is the configuration of a model by itself.
      config_class: Transformers' class for it.
      ignored: fields that the user knows to be harmless.

    Raises:
      ConfigError: a field may change what the model computes; it is named.
    """
    kind = config_class.model_type
    aliases = config_class.attribute_map
    declared = declared_fields(config_class).union(OLD_SPELLINGS.get(kind, ()), aliases, aliases.values())
    refused, leftover = [], []
    for name in set_fields(raw):
        if name in ignored or name in INERT or (kind in WRAPPERS and name in OF_WRAPPERS):
            continue
        if name in READ:
            if name in ONLY_WHERE_DECLARED and name not in declared:
                refused.append(name)
        # Whatever a class has by that name, be it a property, would be taken for the value in the file.
        elif name in MEANINGFUL or name in aliases or hasattr(config_class, name):
            refused.append(name)
        else:
            leftover.append(name)
    if refused:
        raise ConfigError(unknown_fields(kind, refused))
    return leftover


def rope_leftovers(raw: Mapping[str, Any]) -> list[str]:
    """The rotary parameters that nothing reads, as `rope_scaling.NAME`."""
    found = []
    for field in ("rope_scaling", "rope_parameters"):
        parameters = raw.get(field)
        if isinstance(parameters, Mapping):
            kinds = [part for part in parameters.values() if isinstance(part, Mapping)] or [parameters]
            names = {name for part in kinds for name, value in part.items() if value is not None}
            found += [f"{field}.{name}" for name in sorted(names - KNOWN_PARAMETERS)]
    return found


def unknown_fields(kind: str, names: Sequence[str]) -> str:
    """The sentence that refuses fields."""
    return (
        f"{', '.join(names)}: not known for {kind}, and may change what the model computes; where it does not, "
        "name it in model.ignored_fields"
    )
