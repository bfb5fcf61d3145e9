"""A decoder small enough to train within a test."""

import jax
import jax.numpy as jnp
import pytest

from star_jax.models.checkpoint_hf import LanguageModel
from star_jax.models.transformer import Decoder, TransformerConfig, positions_of

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
    decoder = Decoder(SHAPE)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = jax.jit(decoder.init)(jax.random.key(0), tokens, positions_of(jnp.array([2]), 2))["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return LanguageModel(decoder, jax.tree.unflatten(tree, drawn))
