"""What the runs of an experiment share: above all, what the base model is scored with."""

import jax
import numpy as np
import pytest
from random_models import skills_model

from star_jax.acquisition import pool_scoring
from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import BatchSizes, choose_shapes, generated_pool
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import save_model
from star_jax.checkpoints.peft import save_adapter
from star_jax.config import DataConfig, ExperimentConfig, LoraConfig, ModelConfig, TrainingConfig
from star_jax.errors import ConfigError
from star_jax.experiment.setup import open_experiment
from star_jax.models.lora import init_adapter
from star_jax.tracking.console import Progress
from star_jax.tracking.timing import Stopwatch

LORA = LoraConfig(rank=3, alpha=6, targets=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A Llama of one narrow layer and random weights, with the tokenizer that ships with the package."""
    folder = tmp_path_factory.mktemp("setup") / "model"
    tokenizer = load_tokenizer("embedded:skills")
    save_model(skills_model(), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def opened(folder, path, **model):
    config = ExperimentConfig(
        output_dir=str(folder),
        model=ModelConfig(path, **model),
        lora=LORA,
        data=DataConfig(max_prompt_tokens=skills.MAX_PROMPT_TOKENS, max_response_tokens=skills.MAX_RESPONSE_TOKENS),
    )
    return open_experiment(config, [], Progress("silent"), Stopwatch())


def prompts(context):
    tokens = context.encoder.prompts([example.prompt for example in skills.pool_examples("R0", 5, 40)])
    longest = context.encoder.limits.prompt + context.encoder.limits.response
    return generated_pool(context.encoder, tokens, choose_shapes([*map(len, tokens)], [], longest, BatchSizes(40, 40)))


@pytest.mark.parametrize(
    "model",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float32", "quantization": "int8"},
        {"dtype": "bfloat16", "quantization": "nf4"},
    ],
    ids=lambda model: "-".join(model.values()),
)
def test_the_base_model_is_scored_by_the_programs_of_adapters_and_scores_the_same(tmp_path, narrow, model):
    """Where weights and adapter stay apart: ΔW is 0 exactly, and the program is that of a trained adapter."""
    context = opened(tmp_path, narrow, **model)
    assert all(not leaf.any() for leaf in jax.tree.leaves(context.base_adapter))
    assert context.start is None
    pool = prompts(context)
    plain, own = (score_pool(context.model, adapter, pool) for adapter in (None, context.base_adapter))
    np.testing.assert_array_equal(own.responses, plain.responses)
    for name, values in plain.measures.items():
        np.testing.assert_allclose(own.measures[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    compiled = pool_scoring._answer._cache_size()
    trained = init_adapter(jax.random.key(0), context.model.params, LORA)
    score_pool(context.model, trained, pool)
    assert pool_scoring._answer._cache_size() == compiled


def test_weights_that_take_an_adapter_up_need_none(tmp_path, narrow):
    assert opened(tmp_path, narrow).base_adapter is None


def test_the_adapter_to_start_from_is_the_base_models(tmp_path, narrow):
    bare = opened(tmp_path, narrow, dtype="bfloat16")
    fresh = init_adapter(jax.random.key(0), bare.model.params, LORA)
    save_adapter(fresh, tmp_path / "adapter", base_model=narrow, dropout=0.0)
    for dtype in ("float32", "bfloat16"):
        context = opened(tmp_path, narrow, dtype=dtype, adapter=str(tmp_path / "adapter"))
        assert context.base_adapter is context.start is not None


def test_replay_of_which_nothing_is_left_is_refused(tmp_path):
    """Else a run would train without it and say nothing."""
    limits = DataConfig(max_prompt_tokens=2, max_response_tokens=6, too_long="drop")
    training = TrainingConfig(replay="embedded:skills", replay_rows=4)
    config = ExperimentConfig(output_dir=str(tmp_path), data=limits, training=training)
    with pytest.raises(ConfigError, match=r"no row of .*replay\.jsonl has a prompt of at most 2 tokens"):
        open_experiment(config, [], Progress("silent"), Stopwatch())


def test_limits_that_the_model_cannot_read_are_refused(tmp_path, narrow):
    config = ExperimentConfig(
        output_dir=str(tmp_path), model=ModelConfig(narrow), data=DataConfig(max_prompt_tokens=10**6)
    )
    with pytest.raises(ConfigError, match="max_position_embeddings"):
        open_experiment(config, [], Progress("silent"), Stopwatch())
