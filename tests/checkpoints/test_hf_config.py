"""Each family's config.json, in old and new spellings, and what is not known refused by name."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from star_jax.checkpoints.hf_config import (
    BOTH_NORMS,
    FAMILIES,
    INERT,
    POST_NORMS,
    PRE_NORMS,
    READ,
    norm_paths,
    read_config,
)
from star_jax.errors import ConfigError
from star_jax.models.architecture import Architecture, TransformerConfig
from star_jax.models.rotary import Rope, rope_from_hf, unrotated

Fields = dict[str, Any]
Read = Callable[..., TransformerConfig]

RAW: Fields = {
    "architectures": ["SomeForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
    "rope_theta": 5e5,
    "tie_word_embeddings": False,
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": True, "initializer_range": 0.02},
    **{"torch_dtype": "bfloat16", "transformers_version": "4.45.2", "attention_dropout": 0.1},
}
COMMON = TransformerConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-3,
    max_position_embeddings=256,
    ropes=(Rope(5e5),),
)
"""What `RAW` says."""

QKV = ("q_proj", "k_proj", "v_proj")
BOTH = {"norms": tuple(BOTH_NORMS), "norm_offset": 1.0, "scaled_embedding": True}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LISTS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [2.0, 3.0, 4.0, 5.0]}
STRETCH = math.sqrt(1 + math.log(256 / 64) / math.log(64))
GEMMA_3 = {"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 16, "sliding_window": 8}
GEMMA_3_ROPES = {"ropes": (Rope(5e5, (8.0,) * 4), Rope(1e3)), "layer_ropes": (1, 0, 1, 0)}
GEMMA_3_READ = {
    "architecture": Architecture(qk_norm="head", **BOTH),
    "windows": (8, None, 8, None),
    "attention_scale": 0.25,
    "hidden_act": "gelu_pytorch_tanh",
}

CASES: dict[str, tuple[Fields, Fields]] = {
    "llama": ({"model_type": "llama", "rope_scaling": None, "attention_bias": False, "pretraining_tp": 1}, {}),
    "llama, tied": ({"model_type": "llama", "tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    "llama, wide heads": ({"model_type": "llama", "head_dim": 12}, {"head_dim": 12}),
    "llama, gelu": ({"model_type": "llama", "hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "llama, biases": (
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"architecture": Architecture(biases=(*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"))},
    ),
    "llama 3.1": (
        {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"ropes": (rope_from_hf({"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, 8, 256, None),)},
    ),
    "llama, new spelling": (
        {"model_type": "llama", "rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"ropes": (Rope(77.0),)},
    ),
    "mistral": ({"model_type": "mistral", "sliding_window": 8, "head_dim": 6}, {"windows": (8,) * 4, "head_dim": 6}),
    "mistral without a window": ({"model_type": "mistral", "sliding_window": None}, {}),
    "qwen2": (
        {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 8, "max_window_layers": 3},
        {"architecture": Architecture(biases=QKV)},
    ),
    "qwen2 with a window": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3},
        {"architecture": Architecture(biases=QKV), "windows": (None, None, None, 8)},
    ),
    "qwen2, yarn": (
        {"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0}},
        {
            "architecture": Architecture(biases=QKV),
            "ropes": (
                rope_from_hf(
                    {
                        "rope_type": "yarn",
                        "rope_theta": 5e5,
                        "factor": 4.0,
                        "original_max_position_embeddings": 256,
                    },
                    8,
                    256,
                    None,
                ),
            ),
        },
    ),
    "qwen3": (
        {"model_type": "qwen3", "head_dim": 16, "attention_bias": False},
        {"architecture": Architecture(qk_norm="head"), "head_dim": 16},
    ),
    "phi3": ({"model_type": "phi3", "sliding_window": None}, {"architecture": Architecture(fused=True)}),
    "phi3, part of a head": (
        {"model_type": "phi3", "partial_rotary_factor": 0.75, "sliding_window": 8, "full_attn_mod": 1},
        {"architecture": Architecture(fused=True), "ropes": (Rope(5e5, width=6),), "windows": (8,) * 4},
    ),
    "phi3, longrope": (
        {
            "model_type": "phi3",
            "rope_scaling": {"type": "longrope", **LISTS},
            "original_max_position_embeddings": 64,
            "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        },
        {"architecture": Architecture(fused=True), "ropes": (Rope(5e5, (1.0, 1.5, 2.0, 2.5), STRETCH),)},
    ),
    "olmo2": (
        {"model_type": "olmo2", "attention_bias": True},
        {"architecture": Architecture(norms=tuple(POST_NORMS), qk_norm="width", biases=(*QKV, "o_proj"))},
    ),
    "gemma2": (
        {
            "model_type": "gemma2",
            "head_dim": 8,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "sliding_window_size": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "cache_implementation": "hybrid",
        },
        {
            "architecture": Architecture(**BOTH),
            "windows": (8, None, 8, None),
            "attention_scale": 0.25,
            "attention_softcap": 5.0,
            "logit_softcap": 3.0,
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "gemma3_text": (
        {
            **GEMMA_3,
            "sliding_window_pattern": 2,
            "rope_local_base_freq": 1e3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {**GEMMA_3_READ, **GEMMA_3_ROPES},
    ),
    "gemma3_text, new spelling": (
        {
            **GEMMA_3,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "_sliding_window_pattern": 2,
            "rope_theta": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
        {**GEMMA_3_READ, **GEMMA_3_ROPES},
    ),
    "smollm3": (
        {"model_type": "smollm3", "no_rope_layers": [1, 0, 1, 1], "layer_types": ["full_attention"] * 4},
        {"ropes": (Rope(5e5), unrotated(8)), "layer_ropes": (0, 1, 0, 0)},
    ),
    "smollm3, interval": (
        {"model_type": "smollm3", "no_rope_layer_interval": 2, "max_window_layers": 28},
        {"ropes": (Rope(5e5), unrotated(8)), "layer_ropes": (0, 1, 0, 1)},
    ),
    "smollm3, every layer rotated": ({"model_type": "smollm3", "no_rope_layers": [1] * 4}, {}),
}
"""Fields beside those of `RAW`, and what they make of `COMMON`."""


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads a config.json of `RAW` and more fields; the field None is null, and `without` are left out."""

    def read(fields: Fields, *without: str, **options: Any) -> TransformerConfig:
        raw = {name: value for name, value in (RAW | fields).items() if name not in without}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return read_config(tmp_path, **{"dtype": "float32", **options})

    return read


@pytest.mark.parametrize("case", CASES)
def test_a_config_is_read(read: Read, case: str) -> None:
    fields, want = CASES[case]
    assert read(fields) == dataclasses.replace(COMMON, **want)


def test_every_family_is_read_somewhere_above() -> None:
    assert {fields["model_type"] for fields, _ in CASES.values()} == set(FAMILIES)


def test_weights_have_the_type_asked_for(read: Read) -> None:
    assert read({"model_type": "llama"}, dtype="bfloat16") == dataclasses.replace(COMMON, dtype="bfloat16")


@pytest.mark.parametrize(("longest", "factors"), [(None, "short_factor"), (64, "short_factor"), (65, "long_factor")])
def test_the_longest_sequence_chooses_longropes_factors(read: Read, longest: int | None, factors: str) -> None:
    config = read(CASES["phi3, longrope"][0], longest=longest)
    assert config.ropes == (Rope(5e5, tuple(LISTS[factors]), STRETCH),)


def test_what_a_file_leaves_out_is_filled_in_by_transformers(read: Read) -> None:
    config = read({"model_type": "llama"}, "num_key_value_heads", "rope_theta", "rms_norm_eps", "tie_word_embeddings")
    assert config == dataclasses.replace(COMMON, num_key_value_heads=4, ropes=(Rope(1e4),), rms_norm_eps=1e-6)
    assert read({"model_type": "gemma2"}, "tie_word_embeddings").tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "inside"),
    [
        ({"model_type": "llama"}, PRE_NORMS),
        ({"model_type": "olmo2"}, POST_NORMS | {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}),
        ({"model_type": "qwen3"}, PRE_NORMS | {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}),
        ({"model_type": "gemma2"}, BOTH_NORMS),
    ],
)
def test_norms_have_their_names_in_checkpoints(read: Read, fields: Fields, inside: Fields) -> None:
    assert norm_paths(read(fields)) == inside


# What is refused.


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; the families that are read are llama, mistral, smollm3, qwen2"),
        (
            {"model_type": "exotic", "auto_map": {"AutoModelForCausalLM": "modeling_exotic.Exotic"}},
            "model_type is 'exotic', and the remote code that its auto_map names is not run, since it could do any",
        ),
        ({"model_type": None}, "model_type is None; the families that are read are"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config says that the weights are stored quantised, which is not read; take the unquantised",
        ),
        ({"model_type": "llama", "alibi": True, "experts": 8}, "alibi, experts: not known for llama, and may change"),
        ({"model_type": "llama", "sliding_window": 8}, "sliding_window: not known for llama, and may change"),
        ({"model_type": "llama", "sliding_window_pattern": 6}, "sliding_window_pattern: not known for llama"),
        ({"model_type": "qwen3", "rope_local_base_freq": 1e4}, "rope_local_base_freq: not known for qwen3"),
        ({"model_type": "qwen2", "attention_bias": True}, "attention_bias: not known for qwen2"),
        ({"model_type": "llama", "final_logit_softcapping": 30.0}, "final_logit_softcapping: not known for llama"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "is set; this decoder is causal"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "is set; this decoder is causal"),
        ({"model_type": "llama", "hidden_act": "relu"}, "the activation is 'relu'; silu, gelu, gelu_pytorch_tanh are"),
        (
            {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type is 'dynamic'; this decoder knows default, linear",
        ),
        ({"model_type": "llama", "rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "chunked_attention"] * 2,
            },
            "layer_types has 'chunked_attention'; this decoder knows sliding_attention, full_attention",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "chunked_attention"] * 2},
            "layer_types has 'chunked_attention'; this decoder knows sliding_attention, full_attention",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"] * 2},
            "layer_types has sliding_attention, and no sliding_window is set",
        ),
        *(
            (
                {"model_type": "mistral", "sliding_window": window},
                f"sliding_window is {window}; a token sees at least 1",
            )
            for window in (0, -1)
        ),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"] * 4},
            "layer_types: not known for mistral|ministral",
        ),
        (
            {"model_type": "llama", "partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5; llama rotates whole heads",
        ),
        (
            {"model_type": "smollm3", "partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5; smollm3 rotates whole",
        ),
        ({"model_type": "qwen3", "num_key_value_heads": 3}, "is 4, no multiple of num_key_value_heads, which is 3"),
        (
            {"model_type": "llama", "num_hidden_layers": "four"},
            "has 'four' as 'num_hidden_layers'; it must be a whole number from 1 to 10,000",
        ),
        ({"model_type": "llama", "num_attention_heads": 5}, "cannot be read: .*not a multiple of the number of atten"),
    ],
)
def test_other_mathematics_is_refused_by_name(read: Read, fields: Fields, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"config.json: .*{sentence}"):
        read(fields)


def test_more_layers_without_positions_than_layers_are_cut_as_transformers_does(read: Read) -> None:
    config = read({"model_type": "smollm3", "no_rope_layers": [1, 1, 0, 1, 0, 0, 1]})
    assert config.layer_ropes == (0, 0, 1, 0)


@pytest.mark.parametrize("value", [None, [], {}])
def test_unknown_fields_that_are_not_set_are_passed_over(read: Read, value: Any) -> None:
    assert read({"model_type": "llama", "alibi": value, "sliding_window": value or None}) == COMMON


def test_switches_that_are_off_are_passed_over_where_they_are_known(read: Read) -> None:
    assert read({"model_type": "llama", "lm_head_bias": False, "rope_interleaved": False}) == COMMON
    for value in (False, 0, 0.0):
        with pytest.raises(ConfigError, match="use_rope: not known for llama, and may change"):
            read({"model_type": "llama", "use_rope": value})


def test_fields_that_the_user_knows_to_be_harmless_are_passed_over(read: Read) -> None:
    fields = {"model_type": "llama", "alibi": True, "sliding_window": 8}
    assert read(fields, ignored_fields=("alibi", "sliding_window")) == COMMON
    with pytest.raises(ConfigError, match=r"alibi: not known .*; where it does not, name it in model.ignored_fields"):
        read(fields, ignored_fields=("sliding_window",))


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers"])
def test_missing_fields_are_named(read: Read, field: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: the field '{field}' is missing"):
        read({"model_type": "llama"}, field)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config.json; a model is a Hugging Face model folder"):
        read_config(tmp_path, "float32")


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_field_of_transformers_is_known(kind: str) -> None:
    """A field that a newer release adds must be looked at: it may change the mathematics."""
    fields = {field.name for field in dataclasses.fields(AutoConfig.for_model(kind))}
    assert fields - READ - INERT == set()
    assert not READ & INERT
