"""A small experiment that is planned, and its model."""

import dataclasses

import pytest

from star_jax.acquisition.strategy import get_strategy
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    LoraConfig,
    ModelConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.experiment.lengths import longest_lengths
from star_jax.models.architecture import TransformerConfig
from star_jax.planning.plan import Experiment

SHAPE = TransformerConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
CONFIG = ExperimentConfig(
    strategies=("star", "random"),
    seeds=(0, 1),
    lora=LoraConfig(rank=3, targets=("q_proj", "down_proj")),
    training=TrainingConfig(batch_size=4, epochs=2),
    scoring=ScoringConfig(mc_samples=3, batch_size=4),
    generation=GenerationConfig(batch_size=4),
    loop=LoopConfig(initial_labels=10, labels_per_round=5, rounds=3),
    data=DataConfig(max_prompt_tokens=8, max_response_tokens=4),
)
POOL, TESTS = 50, 20


@pytest.fixture
def planned():
    """Makes the experiment, with other values for sections of its configuration."""

    def make(shape=SHAPE, **sections):
        config = dataclasses.replace(CONFIG, model=ModelConfig(dtype=shape.dtype), **sections)
        strategies = [get_strategy(name, config.acquisition) for name in config.strategies]
        limits = config.data.max_prompt_tokens, config.data.max_response_tokens
        return Experiment(config, shape, strategies, None, longest_lengths(POOL, TESTS, *limits))

    return make
