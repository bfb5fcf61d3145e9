"""What a model answers to prompts, freely or from a closed set, what a task reads from it, and how sure the model is.

Shapes: `N` prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from star_jax.acquisition.pool_scoring import response_texts, score_pool
from star_jax.acquisition.pools import (
    BatchSizes,
    CandidatePool,
    GeneratedPool,
    Pool,
    candidate_pool,
    choose_shapes,
    generated_pool,
)
from star_jax.acquisition.strategy import check_finite
from star_jax.config import EvaluationConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Prompt
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder
from star_jax.errors import ConfigError
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel


@dataclass(frozen=True)
class Answerer:
    """A model that answers prompts of a task.

    Attributes:
      model: the frozen base model.
      task: what a prompt and an answer are.
      encoder: tokenizer and limits.
      confidence: what counts as confidence, as in `EvaluationConfig`.
      batch_size: prompts that a device answers at once.
      closed: whether an answer is the most probable one of the task's closed set, instead of what the model writes.
    """

    model: LanguageModel
    task: Task
    encoder: Encoder
    confidence: str = EvaluationConfig.confidence
    batch_size: int = 64
    closed: bool = False


class Answered(NamedTuple):
    """A prompt with the model's answer.

    Attributes:
      prompt: that was asked.
      response: text that the model wrote, or the most probable answer of a closed set.
      answer: what the task reads from it, as a person would write it; None where it can read none.
      confidence: the model's own, in [0, 1]: the probability of its response, in a closed set that beside the others.
    """

    prompt: Prompt
    response: str
    answer: str | None
    confidence: float


def answer_prompts(
    answerer: Answerer,
    adapter: Adapter | None,
    prompts: Sequence[Prompt],
    shapes: Shapes | None = None,
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[Answered]:
    """The model's answers, in the order of the prompts.

    Args:
      answerer: the model.
      adapter: a LoRA on top, or None.
      prompts: to answer.
      shapes: of batches; chosen for these prompts where None.
      on_batch: told the number of prompts of each batch.

    Raises:
      DataError: a prompt is over its limit.
      ScoreError: a likelihood is not finite; the prompts are named.
    """
    if not prompts:
        return []
    pool = answering_pool(answerer, prompts, shapes)
    return answer_pool(answerer, adapter, pool, dict(enumerate(prompts)), on_batch)


def answer_pool(
    answerer: Answerer,
    adapter: Adapter | None,
    pool: Pool,
    asked: Mapping[int, Prompt],
    on_batch: Callable[[int], None] = lambda rows: None,
) -> list[Answered]:
    """The model's answers to some prompts of a pool.

    Args:
      answerer: the model.
      adapter: a LoRA on top, or None.
      pool: from `answering_pool`.
      asked: number in the pool -> prompt, of those that are answered, at least one.
      on_batch: told the number of prompts of each batch.

    Raises:
      ScoreError: a likelihood is not finite; the prompts are named.
    """
    numbers = np.asarray([*asked], np.int64)
    scores = score_pool(answerer.model, adapter, pool, rows=numbers, on_batch=on_batch)
    measures = {name: np.asarray(values)[numbers] for name, values in scores.measures.items()}
    check_finite(measures["sequence_nll"], [prompt.id for prompt in asked.values()])
    nll = measures["sequence_nll_mean" if answerer.confidence == "mean_token" else "sequence_nll"]
    confidence = np.exp(-np.asarray(nll, np.float64)).tolist()
    texts = response_texts(answerer.encoder, pool, scores, numbers)
    return [
        Answered(prompt, text, readable_answer(answerer.task, text), sure)
        for prompt, text, sure in zip(asked.values(), texts, confidence, strict=True)
    ]


def answering_pool(answerer: Answerer, prompts: Sequence[Prompt], shapes: Shapes | None = None) -> Pool:
    """Prompts in batches, to be answered as the answerer does; arguments and errors as those of `answer_prompts`."""
    if answerer.closed:
        return closed_pool(answerer.task, answerer.encoder, prompts, answerer.batch_size)
    return prompt_pool(answerer.encoder, prompts, answerer.batch_size, shapes)


def closed_pool(task: Task, encoder: Encoder, prompts: Sequence[Prompt], batch_size: int) -> CandidatePool:
    """Prompts whose answer is the most probable one of the task's closed set.

    Raises:
      ConfigError: the task has none.
      DataError: a prompt or an answer is over its limit.
    """
    if task.candidates is None:
        raise ConfigError(
            f"evaluation.answers is candidates, but task {task.name} has no closed answer set; choose generated"
        )
    return candidate_pool(encoder, prompts, task.candidates, batch_size)


def prompt_pool(
    encoder: Encoder, prompts: Sequence[Prompt], batch_size: int, shapes: Shapes | None = None
) -> GeneratedPool:
    """Prompts in batches, to be answered; arguments as those of `answer_prompts`.

    Raises:
      DataError: a prompt is over its limit.
    """
    tokens = encoder.prompts(prompts)
    return generated_pool(encoder, tokens, shapes or answer_shapes(encoder, tokens.lengths, batch_size))


def answer_shapes(encoder: Encoder, lengths: Sequence[int] | np.ndarray, batch_size: int) -> Shapes:
    """Shapes of batches for prompts of these lengths, whose responses are not known."""
    # No response is known yet: half of what may be generated is the guess that batches are filled by.
    likely = np.asarray(lengths) + encoder.limits.response // 2
    return choose_shapes(lengths, likely, encoder.longest_row(lengths), BatchSizes(batch_size, batch_size))


def readable_answer(task: Task, text: str) -> str | None:
    """What a task reads from a text, as a person would write it; None where it can read none.

    One of a closed set is spelt as it is there; a free answer keeps its capitals.
    """
    parsed = task.parse(text)
    if parsed is None:
        return None
    if task.candidates is not None:
        return next((known.strip() for known in task.candidates if task.parse(known) == parsed), None)
    plain = " ".join(text.split())
    return plain if plain.casefold() == parsed.casefold() else parsed
