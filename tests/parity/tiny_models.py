"""Tiny Transformers models of every family: configs in the words of published ones, random weights, what they answer.

Fields that published configs leave out are left out here too, so that the defaults of each family are compared as
well. Windows, original context lengths and soft-caps are small enough to matter in sequences of a hundred tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Fields = dict[str, Any]

FAMILY_ROW = "family"
"""Name under which a test records its row of the table at the end, as a property of its report."""

LONGEST_PROMPT = 48
MAX_POSITIONS = 256
REMOTE_CODE = {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
"""Microsoft's configs name code of their own beside a `model_type` that needs none."""


class TinyModel(NamedTuple):
    """One draw of a family.

    Attributes:
      config: as the hub's `config.json` would put it.
      variations: name of a feature → fields that take it away; the logits must change plainly with them.
      shortest_prompt: fewest tokens of a prompt.
      longest: as `load_model` takes it.
    """

    config: Fields
    variations: Mapping[str, Fields] = MappingProxyType({})
    shortest_prompt: int = 1
    longest: int | None = None

    @property
    def vocabulary(self) -> int:
        """Tokens that there are."""
        return self.config.get("text_config", self.config)["vocab_size"]


def _config(rng: np.random.Generator, model_type: str, **fields: Any) -> Fields:
    """What all families share: grouped-query attention whose head width is the model's over the heads, and even."""
    groups = int(rng.integers(1, 3))
    return {
        "model_type": model_type,
        "vocab_size": int(rng.integers(150, 250)),
        "hidden_size": int(rng.choice([48, 72, 96])),
        "intermediate_size": int(rng.integers(60, 140)),
        "num_hidden_layers": 3,
        "num_attention_heads": groups * int(rng.integers(2, 4)),
        "num_key_value_heads": groups,
        "max_position_embeddings": MAX_POSITIONS,
        # Far larger than published, so that another one would show.
        "rms_norm_eps": float(10 ** rng.uniform(-4, -2)),
        "rope_theta": float(10 ** rng.uniform(3, 5)),
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "use_cache": True,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "transformers_version": "4.45.2",
        **fields,
    }


def _wide_heads(rng: np.random.Generator, config: Fields, *widths: int) -> Fields:
    """Heads whose widths do not add up to the model's."""
    even = config["hidden_size"] // config["num_attention_heads"]
    return config | {"head_dim": int(rng.choice([width for width in widths or (12, 16, 20) if width != even]))}


def _window(rng: np.random.Generator) -> int:
    return int(rng.integers(5, 13))


def llama_2(rng: np.random.Generator) -> TinyModel:
    config = _config(rng, "llama", tie_word_embeddings=False, rope_scaling=None, pretraining_tp=1)
    config["num_key_value_heads"] = config["num_attention_heads"]
    del config["rope_theta"]
    return TinyModel(config)


def llama_3(rng: np.random.Generator) -> TinyModel:
    fields = {"tie_word_embeddings": False, "rope_scaling": None, "attention_bias": False, "mlp_bias": False}
    return TinyModel(_wide_heads(rng, _config(rng, "llama", **fields)), {"base of rope": {"rope_theta": 100.0}})


def _llama_with_scaling(rng: np.random.Generator, factor: float, tied: bool) -> TinyModel:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    # With these bases and widths some wavelengths are left, some interpolated and some scaled whole.
    theta = float(rng.uniform(5e3, 2e4))
    config = _config(rng, "llama", tie_word_embeddings=tied, rope_scaling=scaling, rope_theta=theta)
    variations = {
        "scaling": {"rope_scaling": None},
        "interpolation": {"rope_scaling": scaling | {"high_freq_factor": 1.001}},
    }
    return TinyModel(_wide_heads(rng, config, 16, 20), variations)


def llama_31(rng: np.random.Generator) -> TinyModel:
    return _llama_with_scaling(rng, factor=8.0, tied=False)


def llama_32(rng: np.random.Generator) -> TinyModel:
    return _llama_with_scaling(rng, factor=32.0, tied=True)


def mistral(rng: np.random.Generator) -> TinyModel:
    config = _config(rng, "mistral", sliding_window=_window(rng), tie_word_embeddings=False)
    return TinyModel(_wide_heads(rng, config), {"window": {"sliding_window": None}})


def qwen2(rng: np.random.Generator) -> TinyModel:
    # Published with a window and a depth for it, both switched off.
    fields = {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1, "tie_word_embeddings": True}
    return TinyModel(_config(rng, "qwen2", **fields))


def qwen2_window(rng: np.random.Generator) -> TinyModel:
    fields = {"use_sliding_window": True, "sliding_window": _window(rng), "max_window_layers": 2}
    config = _config(rng, "qwen2", num_hidden_layers=4, tie_word_embeddings=False, **fields)
    variations = {"window": {"use_sliding_window": False}, "depth of windows": {"max_window_layers": 0}}
    return TinyModel(config, variations)


def qwen2_yarn(rng: np.random.Generator) -> TinyModel:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": MAX_POSITIONS // 4}
    config = _config(rng, "qwen2", rope_scaling=scaling, use_sliding_window=False, tie_word_embeddings=False)
    variations = {
        "scaling": {"rope_scaling": None},
        "scale of attention": {"rope_scaling": scaling | {"attention_factor": 1.0}},
        "range of scaling": {"rope_scaling": scaling | {"beta_slow": 3.0}},
    }
    return TinyModel(config, variations)


def qwen3(rng: np.random.Generator) -> TinyModel:
    fields = {"attention_bias": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 3}
    return TinyModel(_wide_heads(rng, _config(rng, "qwen3", tie_word_embeddings=bool(rng.integers(2)), **fields)))


def gemma_2(rng: np.random.Generator) -> TinyModel:
    window = _window(rng)
    config = _config(
        rng,
        "gemma2",
        num_hidden_layers=4,
        # Both spellings are published, and so are both of the window.
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=window,
        sliding_window_size=window,
        attention_bias=False,
        cache_implementation="hybrid",
        query_pre_attn_scalar=int(rng.choice([5, 7, 9])),
        attn_logit_softcapping=float(rng.uniform(2, 4)),
        final_logit_softcapping=float(rng.uniform(5, 10)),
    )
    variations = {
        "window": {"sliding_window": MAX_POSITIONS},
        "scale of queries": {"query_pre_attn_scalar": 16},
        "cap of attention": {"attn_logit_softcapping": None},
        "cap of logits": {"final_logit_softcapping": None},
    }
    return TinyModel(_wide_heads(rng, config), variations)


def gemma_3(rng: np.random.Generator) -> TinyModel:
    config = _config(
        rng,
        "gemma3_text",
        num_hidden_layers=6,
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        sliding_window=_window(rng),
        sliding_window_pattern=int(rng.integers(2, 5)),
        query_pre_attn_scalar=int(rng.choice([6, 9, 30])),
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
        rope_local_base_freq=float(10 ** rng.uniform(1, 2)),
    )
    del config["hidden_act"]
    variations = {
        "window": {"sliding_window": MAX_POSITIONS},
        "pattern": {"sliding_window_pattern": 6},
        "scale of queries": {"query_pre_attn_scalar": 16},
        "scaling": {"rope_scaling": None},
        "local base": {"rope_local_base_freq": config["rope_theta"]},
    }
    return TinyModel(_wide_heads(rng, config), variations)


def _phi(rng: np.random.Generator, **fields: Any) -> Fields:
    # The width gives an even number of rotated features for three quarters of a head too.
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attention_dropout": 0.0}
    config = _config(rng, "phi3", hidden_size=96, attention_bias=False, rope_scaling=None, **drops, **REMOTE_CODE)
    return config | {"tie_word_embeddings": False} | fields


def phi_3(rng: np.random.Generator) -> TinyModel:
    config = _phi(rng, sliding_window=_window(rng), original_max_position_embeddings=MAX_POSITIONS)
    config["num_key_value_heads"] = config["num_attention_heads"]
    return TinyModel(config, {"window": {"sliding_window": None}})


def _longrope(rng: np.random.Generator, rotated: int) -> Fields:
    short, long = rng.uniform(1, 2, rotated // 2), rng.uniform(2, 8, rotated // 2)
    return {"type": "longrope", "short_factor": short.tolist(), "long_factor": long.tolist()}


def _phi_with_longrope(rng: np.random.Generator, original: int, **fields: Any) -> TinyModel:
    config = _phi(rng, sliding_window=MAX_POSITIONS, original_max_position_embeddings=original, **fields)
    scaling = _longrope(rng, config["hidden_size"] // config["num_attention_heads"])
    swapped = scaling | {"short_factor": scaling["long_factor"], "long_factor": scaling["short_factor"]}
    config["rope_scaling"] = scaling
    variations = {
        "choice of factors": {"rope_scaling": swapped},
        "scale of attention": {"rope_scaling": scaling | {"attention_factor": 1.0}},
    }
    return TinyModel(config, variations)


def phi_3_short(rng: np.random.Generator) -> TinyModel:
    """Prompt and response together stay inside the original context."""
    return _phi_with_longrope(rng, original=MAX_POSITIONS // 2)


def phi_3_long(rng: np.random.Generator) -> TinyModel:
    """Every prompt is longer than the original context, which transformers looks at anew in each pass."""
    original, most = 24, MAX_POSITIONS // 2
    tiny = _phi_with_longrope(rng, original, max_position_embeddings=most)
    return tiny._replace(shortest_prompt=original + 1, longest=most)


def phi_4_mini(rng: np.random.Generator) -> TinyModel:
    original = MAX_POSITIONS // 2
    fields = {"partial_rotary_factor": 0.75, "tie_word_embeddings": True, "sliding_window": 2 * MAX_POSITIONS}
    harmless = {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False}
    config = _phi(rng, original_max_position_embeddings=original, **fields, **harmless)
    width = config["hidden_size"] // config["num_attention_heads"]
    scaling = _longrope(rng, width * 3 // 4)
    wider = {name: part + part[: width // 8] for name, part in scaling.items() if name != "type"}
    config["rope_scaling"] = scaling
    variations = {"rotated part": {"partial_rotary_factor": 1.0, "rope_scaling": {"type": "longrope", **wider}}}
    return TinyModel(config, variations)


def olmo_2(rng: np.random.Generator) -> TinyModel:
    return TinyModel(_config(rng, "olmo2", attention_bias=False, rope_scaling=None, tie_word_embeddings=False))


def smollm_3(rng: np.random.Generator) -> TinyModel:
    depth, interval = 5, int(rng.integers(2, 5))
    fields = {
        "no_rope_layer_interval": interval,
        "no_rope_layers": [int((layer + 1) % interval != 0) for layer in range(depth)],
        "layer_types": ["full_attention"] * depth,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": 28,
        "attention_bias": False,
        "mlp_bias": False,
    }
    config = _config(rng, "smollm3", num_hidden_layers=depth, rope_scaling=None, **fields)
    return TinyModel(config, {"layers without rope": {"no_rope_layers": [1] * depth}})


def gemma_1(rng: np.random.Generator) -> TinyModel:
    # Published with the older name of the activation, which stands for the newer one.
    return TinyModel(_wide_heads(rng, _config(rng, "gemma", hidden_act="gelu", attention_bias=False)))


def granite(rng: np.random.Generator) -> TinyModel:
    fields = {
        "embedding_multiplier": float(rng.uniform(2, 4)),
        "residual_multiplier": float(rng.uniform(0.3, 0.6)),
        "attention_multiplier": float(rng.uniform(0.1, 0.6)),
        "logits_scaling": float(rng.uniform(0.2, 0.5)),
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    }
    multipliers = [name for name, value in fields.items() if isinstance(value, float)]
    return TinyModel(_config(rng, "granite", **fields), {name: {name: 1.0} for name in multipliers})


def _ministral_3(rng: np.random.Generator, original: int) -> Fields:
    yarn = {
        **{"type": "yarn", "rope_type": "yarn", "rope_theta": float(10 ** rng.uniform(3, 5)), "factor": 4.0},
        **{"original_max_position_embeddings": original, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0},
        **{"mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4},
    }
    config = _config(rng, "ministral3", rope_parameters=yarn, sliding_window=None, tie_word_embeddings=False)
    del config["rope_theta"]
    return _wide_heads(rng, config)


def ministral_3(rng: np.random.Generator) -> TinyModel:
    config = _ministral_3(rng, original=24)
    without = config["rope_parameters"] | {"llama_4_scaling_beta": 0.0}
    return TinyModel(config, {"stretch of queries": {"rope_parameters": without}})


def ministral(rng: np.random.Generator) -> TinyModel:
    # Published as mistral; the list makes it another family.
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    config = _config(rng, "ministral", sliding_window=_window(rng), layer_types=kinds, tie_word_embeddings=False)
    return TinyModel(_wide_heads(rng, config), {"kinds of layers": {"layer_types": ["full_attention"] * 3}})


def olmo_3(rng: np.random.Generator) -> TinyModel:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": MAX_POSITIONS // 4}
    fields = {"attention_bias": False, "sliding_window": _window(rng), "tie_word_embeddings": False}
    config = _config(rng, "olmo3", num_hidden_layers=4, rope_scaling=scaling, **fields)
    variations = {"window": {"sliding_window": MAX_POSITIONS}, "scaling": {"rope_scaling": None}}
    return TinyModel(config, variations)


def seed_oss(rng: np.random.Generator) -> TinyModel:
    fields = {"attention_bias": True, "attention_out_bias": bool(rng.integers(2)), "residual_dropout": 0.1}
    config = _config(rng, "seed_oss", rope_scaling={"rope_type": "default"}, mlp_bias=False, **fields)
    return TinyModel(_wide_heads(rng, config | {"tie_word_embeddings": False}))


def exaone_4(rng: np.random.Generator) -> TinyModel:
    window = _window(rng)
    config = _config(rng, "exaone4", num_hidden_layers=4, sliding_window=window, sliding_window_pattern="LLLG")
    config |= {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "tie_word_embeddings": False}
    return TinyModel(_wide_heads(rng, config), {"window": {"sliding_window": MAX_POSITIONS}})


def exaone_4_small(rng: np.random.Generator) -> TinyModel:
    """Without a window every layer has positions."""
    fields = {"sliding_window": None, "sliding_window_pattern": None, "layer_types": ["full_attention"] * 3}
    return TinyModel(_config(rng, "exaone4", tie_word_embeddings=True, **fields))


def glm_4(rng: np.random.Generator) -> TinyModel:
    config = _config(rng, "glm4", attention_bias=bool(rng.integers(2)), partial_rotary_factor=0.5)
    config |= {"tie_word_embeddings": False, "head_dim": int(rng.choice([12, 16, 20]))}
    return TinyModel(config, {"rotated part": {"partial_rotary_factor": 1.0}})


def mixtral(rng: np.random.Generator) -> TinyModel:
    fields = {"num_local_experts": 5, "num_experts_per_tok": 2, "output_router_logits": False, "sliding_window": None}
    config = _config(rng, "mixtral", router_aux_loss_coef=0.02, tie_word_embeddings=False, **fields)
    return TinyModel(config, {"experts of a token": {"num_experts_per_tok": 1}})


def qwen3_moe(rng: np.random.Generator) -> TinyModel:
    fields = {
        **{"num_experts": 9, "num_experts_per_tok": 3, "moe_intermediate_size": int(rng.integers(20, 40))},
        **{"norm_topk_prob": bool(rng.integers(2)), "decoder_sparse_step": 1, "mlp_only_layers": []},
        **{"attention_bias": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 3},
        **{"output_router_logits": False, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False},
    }
    config = _wide_heads(rng, _config(rng, "qwen3_moe", **fields))
    other = {"norm_topk_prob": not fields["norm_topk_prob"]}
    return TinyModel(config, {"experts of a token": {"num_experts_per_tok": 2}, "sum of weights": other})


VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"patch_size": 14, "image_size": 28},
}
"""The smallest model of images; what is compared is text."""


def gemma_3_wrapped(rng: np.random.Generator) -> TinyModel:
    text = gemma_3(rng).config
    vision = {"model_type": "siglip_vision_model", **VISION}
    fields = {"mm_tokens_per_image": 4, "boi_token_index": 3, "eoi_token_index": 4, "image_token_index": 5}
    return TinyModel({"model_type": "gemma3", "text_config": text, "vision_config": vision, **fields})


def mistral_3_wrapped(rng: np.random.Generator) -> TinyModel:
    text = _ministral_3(rng, 24) if rng.integers(2) else mistral(rng).config
    vision = {"model_type": "pixtral", **VISION}
    fields = {"image_token_index": 5, "spatial_merge_size": 2, "vision_feature_layer": -1, "tie_word_embeddings": False}
    return TinyModel({"model_type": "mistral3", "text_config": text, "vision_config": vision, **fields})


FAMILIES: dict[str, Callable[[np.random.Generator], TinyModel]] = {
    "Llama-2": llama_2,
    "Llama-3": llama_3,
    "Llama-3.1": llama_31,
    "Llama-3.2": llama_32,
    "Mistral": mistral,
    "Qwen2": qwen2,
    "Qwen2-window": qwen2_window,
    "Qwen2.5-YaRN": qwen2_yarn,
    "Qwen3": qwen3,
    "Gemma-2": gemma_2,
    "Gemma-3": gemma_3,
    "Phi-3": phi_3,
    "Phi-3-LongRoPE-short": phi_3_short,
    "Phi-3-LongRoPE-long": phi_3_long,
    "Phi-4-mini": phi_4_mini,
    "OLMo-2": olmo_2,
    "SmolLM3": smollm_3,
    "Gemma": gemma_1,
    "Granite": granite,
    "Ministral": ministral,
    "Ministral-3": ministral_3,
    "OLMo-3": olmo_3,
    "Seed-OSS": seed_oss,
    "EXAONE-4": exaone_4,
    "EXAONE-4-small": exaone_4_small,
    "GLM-4": glm_4,
    "Mixtral": mixtral,
    "Qwen3-MoE": qwen3_moe,
    "Gemma-3-with-images": gemma_3_wrapped,
    "Mistral-3-with-images": mistral_3_wrapped,
}


def torch_model(config: Fields) -> PreTrainedModel:
    """Transformers' model of a config."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    read = AutoConfig.for_model(**config)
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    # The quick way through experts wants widths that are multiples of four.
    options = {"experts_implementation": "eager"} if "num_experts_per_tok" in config else {}
    return kind.from_config(read, attn_implementation="eager", **options).eval().requires_grad_(False)


def randomise(model: PreTrainedModel, seed: int) -> None:
    """Fresh weights: activations of order 1, logits of a few units, biases and norms away from 0 and 1."""
    import torch

    torch.manual_seed(seed)
    decoder = model.get_decoder()
    for module in [*decoder.modules(), model.get_output_embeddings()]:
        # Gemma keeps a norm's weight less 1.
        offset = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
        for name, parameter in module.named_parameters(recurse=False):
            if type(module).__name__.endswith("RMSNorm"):
                torch.nn.init.uniform_(parameter, 0.5 - offset, 1.5 - offset)
            elif name == "bias":
                torch.nn.init.normal_(parameter, std=0.3)
            else:
                torch.nn.init.normal_(parameter, std=1.25 / parameter.shape[-1] ** 0.5)
    for parameter in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        torch.nn.init.normal_(parameter, std=2 / parameter.shape[1] ** 0.5)
    # Where embedding and head are tied, a final norm of one sign would have every token ask for itself again.
    final = decoder.norm
    offset = 1.0 if type(final).__name__.startswith("Gemma") else 0.0
    signs = torch.randint(0, 2, final.weight.shape) * 2.0 - 1.0
    final.weight.copy_((final.weight + offset) * signs - offset)


def torch_logits(model: PreTrainedModel, tokens: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """Logits `B×T×V` of right-padded rows, the padding masked in transformers' own way."""
    import torch

    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    return model(input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(mask).long()).logits


def greedy(model: PreTrainedModel, prompt: np.ndarray, width: int) -> tuple[np.ndarray, float]:
    """The `width` tokens that transformers generates behind one prompt, and the smallest lead of a best token."""
    import torch

    ids = torch.tensor(prompt[None], dtype=torch.long)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=width,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.stack(out.logits, dim=1)[0].topk(2).values
    return out.sequences[0, len(prompt) :].numpy(), float((best[:, 0] - best[:, 1]).min())
