"""A decoder small enough to train within a test."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.checkpoint_hf import LanguageModel, projection_shapes
from star_jax.models.transformer import Decoder, TransformerConfig

SHAPE = TransformerConfig(
    vocab_size=13,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
)


@pytest.fixture(scope="session")
def small_model() -> LanguageModel:
    """Random weights, large enough that the distributions over tokens are far from uniform."""
    rng = np.random.default_rng(0)

    def normal(*shape: int):
        return jnp.asarray(rng.normal(size=shape) * 0.4, jnp.float32)

    depth, width = SHAPE.num_hidden_layers, SHAPE.hidden_size
    layers = {name: {"kernel": normal(depth, *shape)} for name, shape in projection_shapes(SHAPE).items()}
    layers |= {name: {"scale": 1 + normal(depth, width)} for name in ("input_norm", "post_attention_norm")}
    params = {
        "embed_tokens": {"embedding": normal(SHAPE.vocab_size, width)},
        "layers": layers,
        "norm": {"scale": 1 + normal(width)},
        "lm_head": normal(SHAPE.vocab_size, width),
    }
    return LanguageModel(Decoder(SHAPE), params)
