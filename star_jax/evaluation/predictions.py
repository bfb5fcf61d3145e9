"""What a model answers to prompts: its own greedy responses, what a task reads from them, and how sure it is.

Shapes: `N` prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from star_jax.acquisition.pool_scoring import generated_texts, score_pool
from star_jax.acquisition.pools import BatchSizes, GeneratedPool, choose_shapes, generated_pool
from star_jax.acquisition.strategy import check_finite
from star_jax.config import EvaluationConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Prompt
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder
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
    """

    model: LanguageModel
    task: Task
    encoder: Encoder
    confidence: str = EvaluationConfig.confidence
    batch_size: int = 64


class Answered(NamedTuple):
    """A prompt with the model's answer.

    Attributes:
      prompt: that was asked.
      response: text that the model wrote.
      answer: what the task reads from it, as a person would write it; None where it can read none.
      confidence: the model's own, in [0, 1]: the probability of its response.
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
    """The model's greedy answers, in the order of the prompts.

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
    batches = prompt_pool(answerer.encoder, prompts, answerer.batch_size, shapes)
    scores = score_pool(answerer.model, adapter, batches, on_batch=on_batch)
    check_finite(scores.measures["sequence_nll"], [prompt.id for prompt in prompts])
    nll = scores.measures["sequence_nll_mean" if answerer.confidence == "mean_token" else "sequence_nll"]
    confidence = np.exp(-np.asarray(nll, np.float64)).tolist()
    return [
        Answered(prompt, text, readable_answer(answerer.task, text), sure)
        for prompt, text, sure in zip(prompts, generated_texts(scores, answerer.encoder), confidence, strict=True)
    ]


def prompt_pool(
    encoder: Encoder, prompts: Sequence[Prompt], batch_size: int, shapes: Shapes | None = None
) -> GeneratedPool:
    """Prompts in batches, to be answered; arguments as those of `answer_prompts`.

    Raises:
      DataError: a prompt is over its limit.
    """
    tokens = encoder.prompts(prompts)
    return generated_pool(encoder, tokens, shapes or answer_shapes(encoder, [*map(len, tokens)], batch_size))


def answer_shapes(encoder: Encoder, lengths: Sequence[int], batch_size: int) -> Shapes:
    """Shapes of batches for prompts of these lengths, whose responses are not known."""
    limits = encoder.limits
    # No response is known yet: half of what may be generated is the guess that batches are filled by.
    likely = [length + limits.response // 2 for length in lengths]
    return choose_shapes(lengths, likely, limits.prompt + limits.response, BatchSizes(batch_size, batch_size))


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
