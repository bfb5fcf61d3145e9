"""Decoders and adapters of random weights, of any family, for the tests of every folder."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.models.checkpoint_hf import norm_width, projection_shapes
from star_jax.models.families import norm_paths
from star_jax.models.lora import Adapter
from star_jax.models.transformer import Decoder, LanguageModel, TransformerConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of a block without fused projections."""


def random_model(rng: np.random.Generator, config: TransformerConfig) -> LanguageModel:
    """Norms away from 1, and logits of a few units."""

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-2]), config.dtype)

    def norm(*shape: int) -> dict[str, jax.Array]:
        return {"scale": jnp.asarray(rng.uniform(0.5, 1.5, shape) - config.architecture.norm_offset, config.dtype)}

    depth, width, vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
    layers = {name: {"kernel": normal(depth, *shape)} for name, shape in projection_shapes(config).items()}
    for name in config.architecture.biases:
        layers[name]["bias"] = normal(depth, projection_shapes(config)[name][1])
    layers |= {name: norm(depth, norm_width(config, name)) for name in norm_paths(config)}
    params = {
        "embed_tokens": {"embedding": normal(width, vocabulary).T},
        "layers": layers,
        "norm": norm(width),
    }
    if not config.tie_word_embeddings:
        params["lm_head"] = normal(width, vocabulary).T
    return LanguageModel(Decoder(config), params)


def random_adapter(
    rng: np.random.Generator,
    config: TransformerConfig,
    *,
    targets: Sequence[str] = PROJECTIONS,
    rank: int = 3,
    scale: float = 0.75,
) -> Adapter:
    """Both factors random, strong enough to change the logits plainly."""
    depth = config.num_hidden_layers
    weights, scales = {}, {}
    for name in targets:
        width, features = projection_shapes(config)[name]
        a = rng.normal(size=(depth, width, rank)) / np.sqrt(width)
        b = rng.normal(size=(depth, rank, features)) / np.sqrt(rank)
        weights[name] = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
        scales[name] = {"scale": jnp.full((depth,), scale)}
    return Adapter({"layers": weights}, {"layers": scales})
