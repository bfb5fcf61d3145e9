"""The tensors of a checkpoint: what they are called, and their shapes, from the configuration alone."""

from __future__ import annotations

from star_jax.checkpoints.families import expert_paths, norm_paths
from star_jax.models.architecture import TransformerConfig
from star_jax.models.projections import module_path

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def projection_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(in, out) widths of the projections a block has, in the order of `PROJECTION_PATHS`."""
    width, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    if config.architecture.fused:
        attention = {"qkv_proj": (width, query + 2 * shared)}
    else:
        attention = {"q_proj": (width, query), "k_proj": (width, shared), "v_proj": (width, shared)}
    attention["o_proj"] = (query, width)
    if config.experts is not None:
        return attention
    if config.architecture.fused_gate:
        gated = {"gate_up_proj": (width, 2 * inner)}
    else:
        gated = {"gate_proj": (width, inner), "up_proj": (width, inner)}
    return {**attention, **gated, "down_proj": (inner, width)}


def norm_width(config: TransformerConfig, name: str) -> int:
    """Width of a norm of a block."""
    if name not in ("q_norm", "k_norm"):
        return config.hidden_size
    heads = config.num_attention_heads if name == "q_norm" else config.num_key_value_heads
    return config.head_dim * (heads if config.architecture.qk_norm == "width" else 1)


def router_shape(config: TransformerConfig) -> tuple[int, int]:
    """(experts, width) of the router."""
    assert config.experts is not None
    return config.experts.count, config.hidden_size


def expert_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Module of an expert, with `{}` for its number -> shape of its weight."""
    if config.experts is None:
        return {}
    paths, width, inner = expert_paths(config), config.hidden_size, config.experts.intermediate_size
    return {paths.gate: (inner, width), paths.up: (inner, width), paths.down: (width, inner)}


def tensor_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a checkpoint."""
    width = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, width)}
    shapes |= {} if config.tie_word_embeddings else {HEAD: (config.vocab_size, width)}
    shapes["model.norm.weight"] = (width,)
    for layer in range(config.num_hidden_layers):
        for name, suffix in norm_paths(config).items():
            shapes[f"model.layers.{layer}.{suffix}.weight"] = (norm_width(config, name),)
        if config.experts is not None:
            shapes[f"model.layers.{layer}.{expert_paths(config).router}.weight"] = router_shape(config)
        for path, shape in expert_shapes(config).items():
            names = (f"model.layers.{layer}.{path.format(number)}.weight" for number in range(router_shape(config)[0]))
            shapes |= dict.fromkeys(names, shape)
        for name, (fan_in, features) in projection_shapes(config).items():
            shapes[f"{module_path(layer, name)}.weight"] = (features, fan_in)
            if name in config.architecture.biases:
                shapes[f"{module_path(layer, name)}.bias"] = (features,)
    return shapes
