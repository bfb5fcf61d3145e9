"""Each family's config.json, in old and new spellings, and what is not known refused by name."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from star_jax.checkpoints.config_limits import SIZES
from star_jax.checkpoints.families import BOTH_NORMS, FAMILIES, GLM_NORMS, POST_NORMS, PRE_NORMS, norm_paths
from star_jax.checkpoints.hf_config import read_config
from star_jax.errors import ConfigError
from star_jax.models.architecture import Architecture, Experts, TransformerConfig
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

MINISTRAL_3 = {
    **{"type": "yarn", "rope_type": "yarn", "rope_theta": 5e5, "factor": 16.0, "original_max_position_embeddings": 64},
    **{"max_position_embeddings": 256, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    "llama_4_scaling_beta": 0.1,
}
YARN_16 = rope_from_hf({**MINISTRAL_3, "llama_4_scaling_beta": None}, 8, 256, None)

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
    "ministral": (
        {"model_type": "ministral", "layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 8},
        {"windows": (None, 8, None, 8)},
    ),
    "mistral with layer types, which Transformers takes for a ministral": (
        {"model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8},
        {"windows": (8, None, 8, None)},
    ),
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
    "gemma": (
        {"model_type": "gemma", "head_dim": 8, "hidden_act": "gelu", "hidden_activation": None},
        {
            "architecture": Architecture(norm_offset=1.0, scaled_embedding=True),
            "hidden_act": "gelu_pytorch_tanh",
        },
    ),
    "granite": (
        {
            **{"model_type": "granite", "embedding_multiplier": 12.0, "residual_multiplier": 0.22},
            **{"attention_multiplier": 0.0078125, "logits_scaling": 8.0, "attention_bias": False, "mlp_bias": False},
        },
        {
            **{"embedding_multiplier": 12.0, "residual_multiplier": 0.22},
            **{"attention_scale": 0.0078125, "logit_divisor": 8.0},
        },
    ),
    "ministral3": (
        {"model_type": "ministral3", "head_dim": 8, "rope_theta": None, "rope_parameters": MINISTRAL_3},
        {"ropes": (dataclasses.replace(YARN_16, stretch=(0.1, 64.0)),)},
    ),
    "olmo3": (
        {
            **{"model_type": "olmo3", "sliding_window": 8, "attention_bias": False},
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
        {
            "architecture": Architecture(norms=tuple(POST_NORMS), qk_norm="width"),
            "windows": (8, 8, 8, None),
            "ropes": (Rope(5e5, (2.0,) * 4), Rope(5e5)),
            "layer_ropes": (1, 1, 1, 0),
        },
    ),
    "seed_oss": (
        {"model_type": "seed_oss", "head_dim": 8, "attention_bias": True, "attention_out_bias": False},
        {"architecture": Architecture(biases=QKV)},
    ),
    "seed_oss, a bias behind attention": (
        {"model_type": "seed_oss", "head_dim": 8, "attention_bias": False, "attention_out_bias": True},
        {"architecture": Architecture(biases=("o_proj",))},
    ),
    "exaone4": (
        {"model_type": "exaone4", "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
        {
            "architecture": Architecture(norms=tuple(POST_NORMS), qk_norm="head"),
            "windows": (8, None, 8, None),
            "ropes": (Rope(5e5), unrotated(8)),
            "layer_ropes": (0, 1, 0, 1),
        },
    ),
    "exaone4 without a window": (
        {"model_type": "exaone4", "sliding_window": None, "layer_types": ["full_attention"] * 4},
        {"architecture": Architecture(norms=tuple(POST_NORMS), qk_norm="head")},
    ),
    "mixtral": (
        {
            **{"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
            **{"output_router_logits": False, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.0},
        },
        {"experts": Experts(8, 2, 48)},
    ),
    "qwen3_moe": (
        {
            **{"model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 12},
            **{"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": False, "use_sliding_window": False},
            **{"sliding_window": None, "max_window_layers": 4, "head_dim": 16},
        },
        {
            "experts": Experts(16, 4, 12, normalised=False),
            "architecture": Architecture(qk_norm="head"),
            "head_dim": 16,
        },
    ),
    "qwen3_moe, new spelling": (
        {
            **{"model_type": "qwen3_moe", "num_local_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True},
            "moe_intermediate_size": 12,
        },
        {"experts": Experts(16, 4, 12), "architecture": Architecture(qk_norm="head")},
    ),
    "glm4": (
        {"model_type": "glm4", "head_dim": 8, "attention_bias": True},
        {
            "architecture": Architecture(
                tuple(GLM_NORMS), biases=QKV, fused_mlp=True, interleaved=True, norm_names=tuple(GLM_NORMS.values())
            ),
            "ropes": (Rope(5e5, width=4),),
        },
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
        ({"model_type": "glm4", "head_dim": 8}, GLM_NORMS),
    ],
)
def test_norms_have_their_names_in_checkpoints(read: Read, fields: Fields, inside: Fields) -> None:
    assert norm_paths(read(fields)) == inside


WRAPPED: dict[str, tuple[Fields, str]] = {
    "gemma3": ({**GEMMA_3, "sliding_window_pattern": 2, "rope_local_base_freq": 1e3}, "gemma3_text, new spelling"),
    "mistral3": ({"model_type": "mistral", "sliding_window": 8, "head_dim": 6}, "mistral"),
    "mistral3, its next": ({"model_type": "ministral3", **CASES["ministral3"][0]}, "ministral3"),
}
"""Model of images and text -> fields of its language model, and the case above that it equals."""


@pytest.mark.parametrize("name", WRAPPED)
def test_the_text_part_of_a_model_of_images_is_read(tmp_path: Path, name: str) -> None:
    fields, case = WRAPPED[name]
    text = RAW | fields | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}} if name == "gemma3" else RAW | fields
    vision = {"model_type": "siglip_vision_model"} if name == "gemma3" else {"model_type": "pixtral"}
    raw = {"model_type": name.partition(",")[0], "text_config": text, "vision_config": vision}
    (tmp_path / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False, "image_token_index": 5}))
    want = dataclasses.replace(COMMON, **CASES[case][1], module_root="model.language_model")
    got = read_config(tmp_path, "float32")
    for one in (got, want):
        ropes = [one.ropes[kind] for kind in one.layer_ropes] or [one.ropes[0]]
        assert ropes == [want.ropes[kind] for kind in want.layer_ropes] or ropes == [want.ropes[0]]
    assert dataclasses.replace(got, ropes=(), layer_ropes=()) == dataclasses.replace(want, ropes=(), layer_ropes=())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"text_config": None}, "text_config is None; for gemma3 it holds the fields of the language model"),
        (
            {"text_config": {"model_type": "llama"}},
            "text_config has model_type 'llama'; for gemma3, gemma3_text are read",
        ),
        ({"text_config": {**RAW, **GEMMA_3, "is_causal": False}}, "is_causal: not known for gemma3_text"),
        ({"text_config": {**RAW, **GEMMA_3, "quantization_config": {"bits": 4}}}, "the weights are stored quantised"),
        ({"text_config": {**RAW, **GEMMA_3}, "is_causal": False}, "is_causal: not known for gemma3"),
    ],
)
def test_what_is_wrong_in_a_text_part_is_named(tmp_path: Path, fields: Fields, sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3"} | fields))
    with pytest.raises(ConfigError, match=f"config.json: .*{sentence}"):
        read_config(tmp_path, "float32")


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
        ({"model_type": "gemma4_text"}, "is 'gemma4_text'; its layers differ in shape: .* with a window; the families"),
        ({"model_type": "gemma4", "text_config": {}}, "model_type is 'gemma4'; its layers differ in shape"),
        (
            {"model_type": "qwen3_5_text"},
            "model_type is 'qwen3_5_text'; most of its layers are gated delta nets, which",
        ),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config says that the weights are stored quantised, which is not read; take the unquantised",
        ),
        ({"model_type": "llama", "alibi": True, "clip_qkv": 8}, "alibi, clip_qkv: not known for llama, and may change"),
        ({"model_type": "llama", "sliding_window": 8}, "sliding_window: not known for llama, and may change"),
        ({"model_type": "llama", "sliding_window_pattern": 6}, "sliding_window_pattern: not known for llama"),
        ({"model_type": "qwen3", "rope_local_base_freq": 1e4}, "rope_local_base_freq: not known for qwen3"),
        ({"model_type": "qwen2", "attention_bias": True}, "attention_bias: not known for qwen2"),
        ({"model_type": "llama", "final_logit_softcapping": 30.0}, "final_logit_softcapping: not known for llama"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "is set; this decoder is causal"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "is set; this decoder is causal"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": [1]}, "mlp_only_layers or decoder_sparse_step has layers with"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 2}, "mlp_only_layers or decoder_sparse_step has layers"),
        ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok is 9, and there are 8 experts"),
        ({"model_type": "mixtral", "num_local_experts": 0}, "has 0 as 'num_local_experts'; it must be a whole number"),
        ({"model_type": "qwen3", "num_experts_per_tok": 2}, "num_experts_per_tok: not known for qwen3"),
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
            {"model_type": "llama", "layer_types": ["sliding_attention"] * 4},
            "layer_types: not known for llama, and may change",
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


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        *(
            ({"model_type": "qwen3_moe", name: value}, f"{value} as '{name}'; it must be a whole number")
            for name in SIZES
            for value in (0, -1)
        ),
        ({"head_dim": 7}, r"7 entries of a head of 7 \(head_dim\) would be rotated; they go in pairs"),
        ({"eos_token_id": 100}, "eos_token_id is 100, and the vocabulary has tokens 0 to 99"),
        ({"eos_token_id": [2, 100]}, r"eos_token_id is \[2, 100\], and the vocabulary has tokens 0 to 99"),
        ({"eos_token_id": -1}, "eos_token_id is -1, and the vocabulary"),
        ({"bos_token_id": 100}, "bos_token_id is 100, and the vocabulary"),
        ({"pad_token_id": -2}, "pad_token_id is -2, and the vocabulary"),
        ({"pad_token_id": 100}, "pad_token_id is 100, and the vocabulary"),
        ({"rms_norm_eps": -1.0}, "has -1.0 as 'rms_norm_eps'; it must be a positive number"),
        ({"rope_theta": 0.0}, "rope_parameters has rope_theta 0.0; a positive number is expected"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": -2.0}},
            "rope_parameters has factor -2.0; a positive number",
        ),
        ({"model_type": "gemma2", "attn_logit_softcapping": 0.0}, "0.0 as 'attn_logit_softcapping'; it must be a"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "0 as 'query_pre_attn_scalar'; it must be a"),
    ],
)
def test_values_that_no_model_has_are_refused_by_name(read: Read, fields: Fields, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"config.json: .*({sentence})|cannot be read: "):
        read({"model_type": "llama"} | fields)


@pytest.mark.parametrize("name", ["bos_token_id", "pad_token_id"])
def test_an_old_way_to_say_that_there_is_none_is_read(read: Read, name: str) -> None:
    assert read({"model_type": "llama", name: -1}) == COMMON


def test_an_adapter_is_no_model_and_a_model_holds_none(read: Read, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/base"}))
    sentence = "is an adapter of the model some/base, not a model; name its base in model.path and this"
    with pytest.raises(ConfigError, match=sentence):
        read_config(tmp_path, "float32")
    sentence = "holds a model and an adapter .adapter_config.json., which Transformers would load on top of it"
    with pytest.raises(ConfigError, match=sentence):
        read({"model_type": "llama"})


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
