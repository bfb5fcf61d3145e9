"""The evaluator against figures worked out from its own predictions, by other means."""

import jax
import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import BatchSizes, choose_shapes
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import load_model
from star_jax.config import EvaluationConfig, LoraConfig
from star_jax.data.run_data import tokenize_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.evaluation.evaluator import PASSES, UNCERTAINTY, evaluate, prepare_test_set
from star_jax.models.lora import init_adapter


@pytest.fixture(scope="module")
def judged():
    task, model = get_task("skills"), load_model("embedded:skills")
    encoder = Encoder(
        load_tokenizer("embedded:skills"), task, Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS)
    )
    examples = skills.test_examples()[::6]
    tokens = tokenize_examples(encoder, examples)
    lengths = [len(row.tokens) for row in tokens.rows]
    shapes = choose_shapes([*map(len, tokens.prompts)], lengths, max(lengths), BatchSizes(64, 32))
    test = prepare_test_set(task, encoder, tokens, shapes)
    base = np.asarray(score_pool(model, None, test.prompts).measures[UNCERTAINTY])
    config, done = EvaluationConfig(), []
    plain = evaluate(model, None, test, config, base=base, on_batch=done.append)
    assert sum(done) == PASSES * len(examples)
    fresh = init_adapter(jax.random.key(0), model.params, LoraConfig(rank=2, targets=("v_proj",)))
    adapted = evaluate(model, fresh, test, config, base=base)
    return examples, plain, adapted


def test_predictions_are_in_order_and_judged_right(judged):
    examples, plain, _ = judged
    assert [row["id"] for row in plain.predictions] == [example.id for example in examples]
    assert [row["prompt"] for row in plain.predictions] == [example.prompt.text for example in examples]
    for example, row in zip(examples, plain.predictions, strict=True):
        assert row["reference"] == example.response
        assert row["correct"] == (row["prediction"].split() == skills.solve(example.prompt.text).split())
        assert 0 <= row["confidence"] <= 1


def test_metrics_follow_from_the_predictions(judged):
    _, plain, _ = judged
    correct = np.array([row["correct"] for row in plain.predictions])
    confidence = np.array([row["confidence"] for row in plain.predictions])
    uncertainty = [row["uncertainty"] for row in plain.predictions]
    assert 0 < correct.mean() < 1
    assert plain.metrics["accuracy"] == pytest.approx(correct.mean())
    assert plain.metrics["brier"] == pytest.approx(brier_score_loss(correct, confidence))
    assert plain.metrics["auroc"] == pytest.approx(roc_auc_score(~correct, uncertainty))
    for group, value in plain.metrics["group_accuracy"].items():
        own = [row["correct"] for row in plain.predictions if row["group"] == group]
        assert value == pytest.approx(np.mean(own))
    assert plain.metrics["nll"] > 0


def test_a_fresh_adapter_changes_nothing(judged):
    _, plain, adapted = judged
    assert [row["prediction"] for row in adapted.predictions] == [row["prediction"] for row in plain.predictions]
    assert adapted.metrics["auroc"] == adapted.metrics["auroc_base"] == plain.metrics["auroc"]
