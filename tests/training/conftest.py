"""A decoder small enough to train within a test."""

import numpy as np
import pytest
from random_models import random_model

from star_jax.models.architecture import TransformerConfig
from star_jax.models.transformer import LanguageModel

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
    """Its head is steep enough for an adapter to make an answer all but certain."""
    model = random_model(np.random.default_rng(0), SHAPE)
    return model.replace(params={**model.params, "lm_head": 2 * model.params["lm_head"]})
