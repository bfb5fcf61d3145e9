"""What the loop works on and what it hands on: problem, state, choice and info, and who watches.

Shapes: `N` pool, `k` picks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from star_jax.acquisition.needs import Feature, Measure
from star_jax.acquisition.pools import Pool
from star_jax.acquisition.uncertainty import ANSWER_MEASURES, MEASURES
from star_jax.active.pool import PoolState
from star_jax.annotators.annotator import Annotator, Answer
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Example, Prompt
from star_jax.data.tasks.task import no_group
from star_jax.data.tokenization import Encoder, TokenizedExample
from star_jax.inference.batched import BatchLog
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel

Array = jax.Array


class Observer(Protocol):
    """Watches the phases of a round: `phase(name, total, unit)` gives the function that counts what is done."""

    def phase(self, name: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """Opens a phase. Those of the loop are `score` and `train`; a shell may have others."""
        ...


@runtime_checkable
class KeepsScores(Protocol):
    """An observer that also keeps scores as they come, so that an interrupted query goes on where it was."""

    def score_log(self, name: str) -> BatchLog | None:
        """What keeps the results of the pass of that name; None keeps nothing."""
        ...


class Unobserved:
    """Watches nothing."""

    def phase(self, name: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A phase nobody counts."""
        return nullcontext(lambda count: None)


@dataclass(frozen=True)
class Problem:
    """What does not change from round to round.

    Attributes:
      model: the frozen base model.
      encoder: tokenizer, format and limits.
      prompts: the pool, sorted by id; ties between scores go to the earlier one.
      tokens: of each of them.
      pool: the same, in batches, with the kind of answer that is scored.
      shapes: of batches that are scored, and of training steps.
      annotator: who labels what is picked.
      replay: tokenised rows mixed into training.
      start: an adapter the user starts from, part of the base model and of every training's beginning; None for none.
      read: the task's parser, which says what drawn answers have in common.
      group: the task's name for a prompt's kind.
      targets: tokens of the target prompts, for strategies that look for what is like them.
    """

    model: LanguageModel
    encoder: Encoder
    prompts: Sequence[Prompt]
    tokens: Sequence[np.ndarray]
    pool: Pool
    shapes: Shapes
    annotator: Annotator
    replay: Sequence[TokenizedExample] = ()
    start: Adapter | None = None
    read: Callable[[str], str | None] = str.strip
    group: Callable[[Prompt], str] = no_group
    targets: Sequence[np.ndarray] = ()


class LoopState(NamedTuple):
    """What the next step needs.

    Attributes:
      round: trainings done.
      pool: what is labelled.
      labels: index in the pool -> response, for everything labelled so far; each was asked for once.
      adapter: of the last training; None before the first.
      base: what is known of the base model, whose features stay the same; each is computed at most once.
    """

    round: int
    pool: PoolState
    labels: Mapping[int, str]
    adapter: Adapter | None = None
    base: Mapping[Feature, Array] = MappingProxyType({})


def base_measures(state: LoopState) -> dict[str, Array]:
    """What is known of the base model and is small: its measures, by name."""
    return measures_of(state.base)


def measures_of(features: Mapping[Feature, Array]) -> dict[str, Array]:
    """The measures among some features, by name."""
    return {need.name: values for need, values in features.items() if isinstance(need, Measure)}


def base_features(measures: Mapping[str, Array]) -> dict[Feature, Array]:
    """The same as a state has it; what is no measure any more is left out."""
    known = {*MEASURES, *ANSWER_MEASURES}
    return {Measure(name, "base"): values for name, values in measures.items() if name in known}


class RoundInfo(NamedTuple):
    """What a person wants to see of a round.

    Attributes:
      picked: `k` indices asked for in this round, first pick first; behind them those that stand in for skipped ones.
      labelled: labels bought so far.
      train_loss: mean cross-entropy of the last epoch, nats a token.
      scores: `N` acquisition scores; None where none were computed.
      base: `N` the first of the base model's measures that the strategy needs, or None.
      full: `N` the first of the full model's, NaN where it was not scored, or None.
      response_tokens: `N` tokens of the responses the full model was scored on, 0 where it was not, or None.
      validation: labelled examples that were not trained on.
      answers: to each of the picks, in their order.
      losses: cross-entropy of each training step, nats a token.
      guesses: what the model that the picks were made by answers to each of them, None where it was not asked; or None.
    """

    picked: np.ndarray
    labelled: int
    train_loss: float
    scores: np.ndarray | None = None
    base: np.ndarray | None = None
    full: np.ndarray | None = None
    response_tokens: np.ndarray | None = None
    validation: Sequence[Example] = ()
    answers: Sequence[Answer] = ()
    losses: np.ndarray = np.zeros(0)
    guesses: Sequence[str | None] | None = None

    @property
    def skipped(self) -> int:
        """Picks that nobody could label."""
        return sum(answer.skipped for answer in self.answers)


class Choice(NamedTuple):
    """The outcome of scoring and selection: see `RoundInfo`; `picked` `k`, arrays `N` or None.

    `base_features` are those of the base model that it was made from, for the state to keep.
    """

    picked: Array
    scores: Array | None = None
    base: Array | None = None
    full: Array | None = None
    response_tokens: Array | None = None
    base_features: Mapping[Feature, Array] = MappingProxyType({})
    guesses: Sequence[str] | None = None
