"""Fine-tuning on what is labelled, judging, and answering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from star_jax.acquisition.pool_scoring import generated_texts, score_pool
from star_jax.api.checks import check_fits, check_key, check_training
from star_jax.api.model import Model, TunedAdapter
from star_jax.api.pool import ExamplePool, OnBatch, TokenLimits, Tokens, tokenize, unwatched
from star_jax.config import EvaluationConfig, LoraConfig, TrainingConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.run_data import tokenize_examples
from star_jax.errors import DataError
from star_jax.evaluation.evaluator import UNCERTAINTY, prepare_test_set
from star_jax.evaluation.evaluator import evaluate as judge
from star_jax.training.trainer import TrainingRows, training_shapes
from star_jax.training.trainer import fit as train


def fit(
    model: Model,
    pool: ExamplePool,
    *,
    lora: LoraConfig | None = None,
    training: TrainingConfig | None = None,
    limits: TokenLimits | None = None,
    start: TunedAdapter | None = None,
    key: int = 0,
    on_step: OnBatch = unwatched,
) -> TunedAdapter:
    """Trains a LoRA on the labelled examples of a pool.

    Args:
      model: the frozen base model.
      pool: whose labels are trained on.
      lora: rank, scale, dropout and targets.
      training: learning rate, epochs, loss.
      limits: of tokens.
      start: the adapter to go on from; a fresh one where None.
      key: seed of adapter, order and dropout.
      on_step: told the number of examples of each step.

    Raises:
      ConfigError: a target that the model does not have, a setting that `fit` does not read, or one that asks for more
        memory than there is.
      DataError: no example has a label.
      FloatingPointError: training diverged.

    Example:
      >>> import star_jax as sj
      >>> rows = [{"question": "desc 2 7 5 =", "answer": "7 5 2"}]
      >>> settings = sj.TrainingConfig(epochs=1)
      >>> adapter = sj.fit(sj.load_model("embedded:skills"), sj.read_pool(rows, "skills"), training=settings)
      >>> adapter.base_model
      'embedded:skills'
    """
    lora, training = lora or LoraConfig(), training or TrainingConfig()
    check_training(training, held_out=False)
    check_fits(model.weights.config, training, None if start else lora)
    examples = pool.labelled()
    if not examples:
        raise DataError("no example of the pool has a label; there is nothing to train on")
    tokens = tokenize(model, pool, limits)
    rows = tokens.encoder.examples(examples, counted=True)
    lengths, limit = [len(row.tokens) for row in rows], tokens.encoder.limits
    shapes = training_shapes(lengths, [], limit.prompt + limit.response, training)
    weights = None if start is None else start.weights
    data = TrainingRows(rows, (), shapes)
    fitted = train(jax.random.key(check_key(key)), model.weights, data, lora, training, start=weights, on_step=on_step)
    rslora = lora.rslora if start is None else start.rslora
    return TunedAdapter(fitted.adapter, model.name, lora.dropout, rslora, model.weights.config.module_root)


def step_shapes(tokens: Tokens, pool: ExamplePool, training: TrainingConfig) -> Shapes:
    """The shapes of a pool with those of training steps, from the lengths of prompts, whose responses are not known."""
    limit = tokens.encoder.limits
    likely = [len(prompt) + limit.response // 2 + 1 for prompt in tokens.prompts]
    return tokens.shapes._replace(training=training_shapes(likely, [], limit.prompt + limit.response, training))


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes:
      accuracy: share of examples that are right, by the task's own rule.
      nll: nats a token of the labels.
      brier: mean squared error of the confidence.
      ece: expected calibration error, bins of equal width.
      auroc: how well uncertainty tells wrong answers from right ones; None where all are right, or all wrong.
      group_accuracy: accuracy by group.
      predictions: one object an example: id, prompt, prediction, reference, correct, confidence, uncertainty, group.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float
    auroc: float | None
    group_accuracy: Mapping[str, float] = field(repr=False)
    predictions: list[dict[str, Any]] = field(repr=False)


def evaluate(
    model: Model,
    test: ExamplePool,
    adapter: TunedAdapter | None = None,
    *,
    limits: TokenLimits | None = None,
    settings: EvaluationConfig | None = None,
    batch_size: int = 64,
    on_batch: OnBatch = unwatched,
) -> Evaluation:
    """Answers the prompts of labelled examples greedily, and judges the answers.

    Args:
      model: the base model.
      test: labelled examples.
      adapter: a LoRA on top; the base model alone is judged where None.
      limits: of tokens.
      settings: what counts as confidence, and bins.
      batch_size: prompts that a device answers at once.
      on_batch: told the number of examples of each batch, twice over the examples.

    Raises:
      DataError: an example has no label.
      ScoreError: a likelihood is not finite; the examples are named.

    Example:
      >>> import star_jax as sj
      >>> test = sj.read_pool([{"question": "rev 3 1 4 =", "answer": "4 1 3"}], "skills")
      >>> sj.evaluate(sj.load_model("embedded:skills"), test).accuracy
      1.0
    """
    examples = test.labelled()
    if len(examples) < len(test):
        missing = next(name for name in test.ids if name not in test.labels)
        raise DataError(f"{len(test) - len(examples)} examples of the test set have no label, {missing} among them")
    tokens = tokenize(model, test, limits, batch_size, closed=False)
    prepared = prepare_test_set(test.task, tokens.encoder, tokenize_examples(tokens.encoder, examples), tokens.shapes)
    found = judge(
        model.weights,
        None if adapter is None else adapter.weights,
        prepared,
        settings or EvaluationConfig(),
        base=np.zeros(len(examples)),
        on_batch=on_batch,
    )
    names = ("accuracy", "nll", "brier", "ece", "auroc", "group_accuracy")
    predictions = [
        {name: value for name, value in one.items() if name != "base_uncertainty"} for one in found.predictions
    ]
    return Evaluation(**{name: found.metrics[name] for name in names}, predictions=predictions)


@dataclass(frozen=True)
class Prediction:
    """A model's answer.

    Attributes:
      id: of the example.
      response: text that the model wrote.
      answer: what the task reads from it; None where it can read none.
      confidence: probability of the whole response.
      uncertainty: token entropy of the response, nats.
    """

    id: str
    response: str
    answer: str | None
    confidence: float
    uncertainty: float


def predict(
    model: Model,
    pool: ExamplePool,
    adapter: TunedAdapter | None = None,
    *,
    limits: TokenLimits | None = None,
    batch_size: int = 64,
    on_batch: OnBatch = unwatched,
) -> list[Prediction]:
    """The model's greedy answers, in the order of the pool.

    Args:
      model: the base model.
      pool: examples; labels are not looked at.
      adapter: a LoRA on top.
      limits: of tokens.
      batch_size: prompts that a device answers at once.
      on_batch: told the number of examples of each batch.

    Example:
      >>> import star_jax as sj
      >>> pool = sj.read_pool([{"question": "max 3 1 4 ="}], "skills")
      >>> sj.predict(sj.load_model("embedded:skills"), pool)[0].response
      '4'
    """
    if not len(pool):
        return []
    tokens = tokenize(model, pool, limits, batch_size, closed=False)
    weights = None if adapter is None else adapter.weights
    scores = score_pool(model.weights, weights, tokens.batches(pool), on_batch=on_batch)
    texts = generated_texts(scores, tokens.encoder)
    confidence = np.exp(-np.asarray(scores.measures["sequence_nll"], np.float64)).tolist()
    uncertainty = np.asarray(scores.measures[UNCERTAINTY]).tolist()
    return [
        Prediction(name, text, pool.task.parse(text), sure, unsure)
        for name, text, sure, unsure in zip(pool.ids, texts, confidence, uncertainty, strict=True)
    ]
