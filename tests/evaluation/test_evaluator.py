"""The evaluator against figures worked out from its own predictions, by other means."""

import jax
import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import BatchSizes, choose_shapes, proposed_pool
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import load_model
from star_jax.config import EvaluationConfig, FormatConfig, LoraConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Example
from star_jax.data.loading import load_examples
from star_jax.data.run_data import tokenize_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import ConfigError
from star_jax.evaluation.evaluator import PASSES, UNCERTAINTY, accuracy_of_answers, evaluate, prepare_test_set
from star_jax.models.lora import init_adapter
from star_jax.runs.score_store import answers_of, with_answers


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


ANSWERS = ("1", "2 3", "1 4")


@pytest.fixture(scope="module")
def closed():
    """Examples with one of three answers, and what judges them."""
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"q{i}", "prompt": " ".join(map(str, rng.integers(0, 10, 2 + i % 3))), "response": ANSWERS[i % 3]}
        for i in range(7)
    ]
    task, model = get_task("generic", FormatConfig("{{ prompt }} ", answers=ANSWERS)), load_model("embedded:skills")
    encoder = Encoder(load_tokenizer("embedded:skills"), task, Limits(9, 6))
    examples = load_examples(task, rows, "test", "error")
    shapes = choose_shapes([6] * 7, [8] * 7, 15, BatchSizes(7, 7))
    return model, examples, prepare_test_set(task, encoder, tokenize_examples(encoder, examples), shapes, closed=2)


def test_of_a_closed_set_the_most_probable_answer_is_judged(closed):
    """Its confidence is its share of the probability of all answers, each taken by itself here."""
    model, examples, test = closed
    base = np.asarray(score_pool(model, None, test.prompts).measures[UNCERTAINTY])
    found = evaluate(model, None, test, EvaluationConfig(), base=base)
    nlls = []
    for answer in test.task.candidates:
        rows = test.encoder.examples([Example(example.prompt, answer) for example in examples])
        nlls.append(score_pool(model, None, proposed_pool(rows, test.gold.shapes)).measures["sequence_nll"])
    likelihood = np.exp(-np.asarray(nlls, np.float64).T)
    shares = likelihood / likelihood.sum(axis=1, keepdims=True)
    chosen = shares.argmax(axis=1)
    assert [row["prediction"].strip() for row in found.predictions] == [ANSWERS[place] for place in chosen]
    assert [row["correct"] for row in found.predictions] == [place == i % 3 for i, place in enumerate(chosen)]
    confidence = [row["confidence"] for row in found.predictions]
    np.testing.assert_allclose(confidence, shares.max(axis=1), rtol=1e-4)
    entropy = -(shares * np.log(shares)).sum(axis=1)
    np.testing.assert_allclose([row["uncertainty"] for row in found.predictions], entropy, rtol=1e-4, atol=1e-6)
    assert [row["base_uncertainty"] for row in found.predictions] == [row["uncertainty"] for row in found.predictions]


def test_answers_of_a_closed_set_can_be_kept_and_judged_again(closed):
    model, _, test = closed
    scores = score_pool(model, None, test.prompts)
    stored = {name: np.asarray(values) for name, values in with_answers(scores).items()}
    assert "answer_lengths" not in stored
    base = np.zeros(len(test.examples))
    assert (
        accuracy_of_answers(test, answers_of(stored))
        == evaluate(model, None, test, EvaluationConfig(), base=base).metrics["accuracy"]
    )
    assert accuracy_of_answers(test, answers_of(dict(scores.measures))) is None


def test_a_task_without_a_closed_set_is_refused(judged, closed):
    task = get_task("skills")
    with pytest.raises(
        ConfigError, match=r"evaluation\.answers is candidates, but task skills has no closed answer set"
    ):
        prepare_test_set(task, closed[2].encoder, tokenize_examples(closed[2].encoder, judged[0]), Shapes((), ()), 4)
