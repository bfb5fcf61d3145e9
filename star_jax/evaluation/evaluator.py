"""Judges a model on the test set: its answers, exact match, calibration, and what its uncertainty knows.

Shapes: `N` test examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from star_jax.acquisition.pool_scoring import PoolScores, response_texts, score_pool
from star_jax.acquisition.pools import CandidatePool, GeneratedPool, ProposedPool, generated_pool, proposed_pool
from star_jax.acquisition.strategy import check_finite
from star_jax.config import EvaluationConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Example
from star_jax.data.run_data import TokenizedSet
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder
from star_jax.evaluation.accuracy import accuracy, grouped_accuracy, judge
from star_jax.evaluation.calibration import auroc, brier, expected_calibration_error
from star_jax.evaluation.predictions import closed_pool
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel

UNCERTAINTY = "token_entropy"
"""Measure whose AUROC against errors is reported, whatever the strategy picks by: so that runs compare."""

PASSES = 2
"""How many times `evaluate` goes through the examples, and counts them: for answers, and over gold responses."""


@dataclass(frozen=True)
class TestSet:
    """Test examples in batches, made once for all rounds.

    Attributes:
      task: parser and correctness.
      encoder: tokenizer.
      examples: with gold responses.
      prompts: to be answered by generation, or from a closed set.
      gold: the gold responses, for their NLL.
      readings: the gold responses as the model can write them; see `Encoder.readings`.
    """

    __test__ = False  # The name is the field's; it is no test case.

    task: Task
    encoder: Encoder
    examples: Sequence[Example]
    prompts: GeneratedPool | CandidatePool
    gold: ProposedPool
    readings: Sequence[str]


class Evaluation(NamedTuple):
    """Figures of one model.

    Attributes:
      metrics: accuracy, nll (nats a gold token), brier, ece (equal width), ece_equal_mass, auroc and
        auroc_base (uncertainty against errors; None where all answers are right or all wrong), group_accuracy.
      predictions: one object an example, ready for predictions.jsonl: `id`, `group`, `prompt`, the model's answer
        `prediction`, the gold response `reference`, `correct`, `confidence` (a probability), and `uncertainty` and
        `base_uncertainty` (`UNCERTAINTY` of the model and of the base model, nats).
    """

    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]


class GoldLikelihood(NamedTuple):
    """How likely a model finds the gold responses.

    Attributes:
      nll: `N`, nats.
      tokens: `N`, tokens of each.
    """

    nll: np.ndarray
    tokens: np.ndarray


def prepare_test_set(
    task: Task, encoder: Encoder, test: TokenizedSet, shapes: Shapes, closed: int | CandidatePool | None = None
) -> TestSet:
    """Batches prompts and gold responses.

    Args:
      task: parser and correctness.
      encoder: tokenizer.
      test: examples.
      shapes: of batches.
      closed: prompts of a batch, where an answer is the most probable one of the task's closed set, or the prompts with
        that set behind them; None where it is generated.

    Raises:
      ConfigError: `closed`, and the task has no closed set.
    """
    gold = proposed_pool(test.rows, shapes.sequences)
    prompts: GeneratedPool | CandidatePool
    if closed is None:
        prompts = generated_pool(encoder, test.prompts, shapes)
    elif isinstance(closed, CandidatePool):
        prompts = closed
    else:
        asked = [example.prompt for example in test.examples]
        prompts = closed_pool(task, encoder, asked, closed)
    return TestSet(task, encoder, test.examples, prompts, gold, encoder.readings(test.examples))


def evaluate(
    model: LanguageModel,
    adapter: Adapter | None,
    test: TestSet,
    config: EvaluationConfig,
    *,
    base: np.ndarray,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> Evaluation:
    """Answers every test prompt, and judges.

    Args:
      model: decoder and frozen weights.
      adapter: the fine-tuned adapter; None judges the base model.
      test: the test set.
      config: confidence and bins.
      base: `N`, the base model's `UNCERTAINTY` on its own answers, nats, for `auroc_base`.
      on_batch: told the number of examples of each batch, in each of the `PASSES`.

    Raises:
      ScoreError: a likelihood is not finite; the examples are named.
    """
    return evaluate_with_gold(model, adapter, test, config, base=base, on_batch=on_batch)[0]


def evaluate_with_gold(
    model: LanguageModel,
    adapter: Adapter | None,
    test: TestSet,
    config: EvaluationConfig,
    *,
    base: np.ndarray,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> tuple[Evaluation, GoldLikelihood]:
    """The same, with the likelihood of each gold response; arguments and errors as those of `evaluate`."""
    scores = score_pool(model, adapter, test.prompts, on_batch=on_batch)
    gold = score_pool(model, adapter, test.gold, on_batch=on_batch).measures
    for measures in (scores.measures, gold):
        check_finite(measures["sequence_nll"], [example.id for example in test.examples])
    texts = response_texts(test.encoder, test.prompts, scores, np.arange(test.prompts.size))
    correct = judge(test.task, texts, [example.response for example in test.examples], test.readings)

    suffix = "_mean" if config.confidence == "mean_token" else ""
    nll = np.asarray(scores.measures[f"sequence_nll{suffix}"], np.float64)
    confidence = np.exp(-nll)
    uncertainty = np.asarray(scores.measures[UNCERTAINTY])
    groups = [test.task.group(example.prompt) for example in test.examples]
    metrics = {
        "accuracy": accuracy(correct),
        "nll": _total(gold["sequence_nll"]) / _total(gold["response_tokens"]),
        "brier": brier(confidence, correct),
        "ece": expected_calibration_error(confidence, correct, config.bins, "equal_width"),
        "ece_equal_mass": expected_calibration_error(confidence, correct, config.bins, "equal_mass"),
        "auroc": auroc(uncertainty, ~correct),
        "auroc_base": auroc(base, ~correct),
        "group_accuracy": grouped_accuracy(correct, groups),
    }
    predictions = [
        {
            "id": example.id,
            "prompt": example.prompt.readable,
            "prediction": text,
            "reference": example.response,
            "correct": bool(right),
            "confidence": float(sure),
            "uncertainty": float(unsure),
            "base_uncertainty": float(unsure_base),
            "group": group,
        }
        for example, text, right, sure, unsure, unsure_base, group in zip(
            test.examples, texts, correct, confidence, uncertainty, base, groups, strict=True
        )
    ]
    likelihood = GoldLikelihood(np.asarray(gold["sequence_nll"]), np.asarray(gold["response_tokens"]))
    return Evaluation(metrics, predictions), likelihood


def accuracy_of_answers(test: TestSet, answers: PoolScores | None) -> float | None:
    """Share of answers to the test prompts that are right, judged as `evaluate` does; None for no answers."""
    if answers is None:
        return None
    references = [example.response for example in test.examples]
    texts = response_texts(test.encoder, test.prompts, answers, np.arange(test.prompts.size))
    return accuracy(judge(test.task, texts, references))


def _total(values: Any) -> float:
    return float(np.sum(np.asarray(values), dtype=np.float64))
