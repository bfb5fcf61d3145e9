"""The loop turned inside out: `ask` says what to label, `tell` takes the answers that there are and trains.

For callers that own the loop themselves. Pure functions of a plain state, like `active.loop`, which they share: but how
many are asked for is the caller's choice each time, not every request needs an answer, and one that is not answered
goes back into the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.strategy import Strategy
from star_jax.active.loop import init, train
from star_jax.active.pool import SKIPPED, available, label, skip
from star_jax.active.query import QueryKeys, first_strategy, initial, picker, query_of, requests_of, score_and_pick
from star_jax.active.state import LoopState, Observer, Problem
from star_jax.annotators.annotator import Answer, Request
from star_jax.config import ExperimentConfig
from star_jax.errors import ConfigError, DataError

Array = jax.Array


class AskTellState(NamedTuple):
    """What the next call needs.

    Attributes:
      loop: labels, what is unlabelled, and the adapter of the last training.
      asks: how often was asked; folded into the key.
      open: requests that have no answer yet, of the last time that was asked.
      skipped: examples that cannot be labelled.
    """

    loop: LoopState
    asks: int = 0
    open: tuple[Request, ...] = ()
    skipped: int = 0


class TellInfo(NamedTuple):
    """What a person wants to see of a `tell`.

    Attributes:
      labelled: labels so far.
      skipped: examples that cannot be labelled, so far.
      unanswered: requests without an answer, which are in the pool again.
      train_loss: mean cross-entropy of the last epoch, nats a token; None where nothing was trained.
      step_losses: cross-entropy of each training step, nats a token.
    """

    labelled: int
    skipped: int
    unanswered: int
    train_loss: float | None = None
    step_losses: np.ndarray = np.zeros(0)


def start(pool_size: int, labels: Mapping[int, str] | None = None) -> AskTellState:
    """Before the first call.

    Args:
      pool_size: N.
      labels: index in the pool -> response, of what has a label from the beginning.
    """
    state = init(pool_size)
    if labels:
        known = dict(sorted(labels.items()))
        places = jnp.asarray(list(known), jnp.int32)
        state = state._replace(pool=label(state.pool, places, 0), labels=known)
    return AskTellState(state)


def ask(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: AskTellState,
    key: Array,
    count: int,
    observer: Observer | None = None,
) -> tuple[AskTellState, list[Request]]:
    """What to label next: as `loop.initial` says before the first training, by the strategy afterwards.

    Args:
      config: the experiment; `loop.rounds` is read by schedules that depend on it.
      strategy: from the registry.
      problem: pool and model.
      state: before.
      key: PRNG key of the whole loop.
      count: examples to ask for.
      observer: told how far the scoring is.

    Raises:
      ConfigError: there are not so many unlabelled examples, or a query does not score so many; or as
        `active.loop.choose`.
      ScoreError: a score is not finite; the ids are named.
    """
    check_count(state, count)
    key = jax.random.fold_in(key, state.asks)
    keys = QueryKeys.of(key, *jax.random.split(key))
    asker = first_strategy(config) if state.loop.adapter is None else strategy
    if asker is None:
        choice = initial(keys.select, state.loop, count)
    else:
        most = config.acquisition.score_at_most
        if asker.needs and most is not None and count > most:
            raise ConfigError(
                f"{count} examples were asked for and acquisition.score_at_most is {most}, which is all that a query "
                f"may pick from; ask for at most {most}"
            )
        query = query_of(config, state.loop, count)
        choice = score_and_pick(config, asker, problem, state.loop, keys, query, observer)
    requests = requests_of(problem, choice, strategy.name, picker(config, strategy, first=state.loop.adapter is None))
    loop = state.loop._replace(base={**state.loop.base, **choice.base_features})
    return state._replace(loop=loop, asks=state.asks + 1, open=tuple(requests)), requests


def check_count(state: AskTellState, count: int) -> None:
    """Refuses to ask for none, or for more than there are.

    Raises:
      ConfigError: saying how many there are.
    """
    left = int(np.sum(np.asarray(available(state.loop.pool))))
    if not left:
        raise ConfigError("there is nothing left to ask for: every example has a label or was skipped")
    if not 1 <= count <= left:
        raise ConfigError(f"{count} examples were asked for and {left} are unlabelled; ask for 1 to {left}")


def tell(
    config: ExperimentConfig,
    problem: Problem,
    state: AskTellState,
    answers: Sequence[Answer],
    key: Array,
    observer: Observer | None = None,
) -> tuple[AskTellState, TellInfo]:
    """Takes answers, and trains a fresh adapter on all labels so far, where there is a new one.

    Answers may be to requests of any earlier time, or to examples that were never asked for. One for an example that
    has a label already replaces it. Where no label is left, there is no adapter either.

    Args:
      config: the experiment.
      problem: pool and model.
      state: before.
      answers: those that there are.
      key: PRNG key of the whole loop.
      observer: told how far the training is.

    Raises:
      DataError: an id is not in the pool, or twice among the answers, or a label is none of the task.
      FloatingPointError: training diverged.
    """
    place = {prompt.id: index for index, prompt in enumerate(problem.prompts)}
    given = _checked(problem, answers, place)
    # 1. The pool without what was answered.
    loop, number = state.loop, state.loop.round
    pool = loop.pool
    labelled = [place[name] for name, response in given.items() if response is not None]
    skipped = [place[name] for name, response in given.items() if response is None]
    if labelled:
        pool = label(pool, jnp.asarray(labelled, jnp.int32), number)
    if skipped:
        pool = skip(pool, jnp.asarray(skipped, jnp.int32))
    labels = {index: response for index, response in loop.labels.items() if index not in set(skipped)}
    labels |= {place[name]: response for name, response in given.items() if response is not None}
    labels = dict(sorted(labels.items()))
    unanswered = sum(request.id not in given for request in state.open)
    count = int(np.sum(np.asarray(pool.labelled_in) == SKIPPED))
    state = state._replace(loop=loop._replace(pool=pool, labels=labels), open=(), skipped=count)
    if not labels:
        return state._replace(loop=state.loop._replace(adapter=None)), TellInfo(0, count, unanswered)
    if loop.adapter is not None and labels == dict(loop.labels):
        return state, TellInfo(len(labels), count, unanswered)
    # 2. A fresh adapter.
    train_key = jax.random.split(jax.random.fold_in(key, number), 3)[2]
    fitted, _ = train(config, problem, labels, train_key, observer)
    loop = state.loop._replace(round=number + 1, adapter=fitted.adapter)
    info = TellInfo(len(labels), count, unanswered, fitted.loss, fitted.step_losses)
    return state._replace(loop=loop), info


def _checked(problem: Problem, answers: Sequence[Answer], place: Mapping[str, int]) -> dict[str, str | None]:
    """Id -> response, or None for skipped; nothing is taken over where one of them is wrong."""
    given: dict[str, str | None] = {}
    for answer in answers:
        if answer.id not in place:
            raise DataError(f"an answer is for {answer.id!r}, and no example of the pool has that id")
        if answer.id in given:
            raise DataError(f"there are two answers for {answer.id!r}; give one")
        given[answer.id] = answer.response
    return given
