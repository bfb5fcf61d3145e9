"""Decoders and adapters of random weights, of any family, for the tests of every folder."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.benchmarks.skills.generator import VOCABULARY
from star_jax.checkpoints.families import BOTH_NORMS, POST_NORMS, norm_paths
from star_jax.checkpoints.tensor_shapes import norm_width, projection_shapes
from star_jax.models.architecture import Architecture, TransformerConfig
from star_jax.models.lora import Adapter
from star_jax.models.rotary import Rope, unrotated
from star_jax.models.transformer import Decoder, LanguageModel

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of a block without fused projections."""

TWO_ROPES = {"ropes": (Rope(500.0), Rope(20.0, divisors=(1.0, 2.0, 3.0, 4.0), factor=1.3)), "layer_ropes": (1, 0)}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen": {
        "architecture": Architecture(qk_norm="head", biases=("q_proj", "v_proj", "up_proj")),
        "windows": (None, 3),
        "tie_word_embeddings": True,
    },
    "phi": {
        "architecture": Architecture(fused=True, biases=("qkv_proj", "o_proj")),
        "ropes": (Rope(500.0, width=4),),
        "windows": (3, 3),
    },
    "olmo": {
        "architecture": Architecture(tuple(POST_NORMS), qk_norm="width", biases=PROJECTIONS),
        "ropes": (Rope(500.0), unrotated(8)),
        "layer_ropes": (0, 1),
        "hidden_act": "gelu",
    },
    "glm": {
        "architecture": Architecture(tuple(BOTH_NORMS), fused_mlp=True, interleaved=True, biases=PROJECTIONS[:3]),
        "ropes": (Rope(500.0, width=4, stretch=(0.3, 4.0)),),
        **{"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logit_divisor": 0.8},
    },
    "gemma": {
        "architecture": Architecture(tuple(BOTH_NORMS), qk_norm="head", norm_offset=1.0, scaled_embedding=True),
        "windows": (2, None),
        **TWO_ROPES,
        **{"attention_scale": 0.2, "attention_softcap": 1.5, "logit_softcap": 2.0},
        **{"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    },
}
"""Every part that a family has, in the fewest decoders; fields for one of two layers, with heads of 8."""


def random_model(rng: np.random.Generator, config: TransformerConfig) -> LanguageModel:
    """Norms away from 1, and logits of a few units."""

    # Drawn and turned by numpy: on the device, each would be a program for every shape.
    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape) / np.sqrt(shape[-2])

    def norm(*shape: int) -> dict[str, np.ndarray]:
        return {"scale": rng.uniform(0.5, 1.5, shape) - config.architecture.norm_offset}

    depth, width, vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
    layers = {name: {"kernel": normal(depth, *shape)} for name, shape in projection_shapes(config).items()}
    for name in config.architecture.biases:
        layers[name]["bias"] = normal(depth, projection_shapes(config)[name][1])
    layers |= {name: norm(depth, norm_width(config, name)) for name in norm_paths(config)}
    if config.experts is not None:
        count, inner = config.experts.count, config.experts.intermediate_size
        shapes = {"router": (width, count), "gate_up": (count, width, 2 * inner), "down": (count, inner, width)}
        layers["experts"] = {name: normal(depth, *shape) for name, shape in shapes.items()}
    params: dict[str, Any] = {
        "embed_tokens": {"embedding": normal(width, vocabulary).T},
        "layers": layers,
        "norm": norm(width),
    }
    if not config.tie_word_embeddings:
        params["lm_head"] = normal(width, vocabulary).T
    return LanguageModel(Decoder(config), jax.tree.map(lambda leaf: jnp.asarray(leaf, config.dtype), params))


TINY = TransformerConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
)
"""The shape of the smallest model that has two query heads on one of keys and values."""


def skills_model(seed: int = 0) -> LanguageModel:
    """One narrow layer over the tokens of the embedded benchmark, where it does not matter what a model has learned."""
    shape = TransformerConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
    )
    return random_model(np.random.default_rng(seed), shape)


def random_adapter(
    rng: np.random.Generator,
    config: TransformerConfig,
    *,
    targets: Sequence[str] = (),
    rank: int = 3,
    scale: float = 0.75,
) -> Adapter:
    """Both factors random, strong enough to change the logits plainly; all projections where none are named."""
    depth, shapes = config.num_hidden_layers, projection_shapes(config)
    weights, scales = {}, {}
    for name in targets or shapes:
        width, features = shapes[name]
        a = rng.normal(size=(depth, width, rank)) / np.sqrt(width)
        b = rng.normal(size=(depth, rank, features)) / np.sqrt(rank)
        weights[name] = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
        scales[name] = {"scale": jnp.asarray(np.full(depth, scale, np.float32))}
    return Adapter({"layers": weights}, {"layers": scales})
