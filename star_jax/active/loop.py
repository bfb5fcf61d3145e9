"""STAR's loop: `init`, and `step`, which is `choose` and `learn`. The only wiring there is.

`choose` scores the pool and picks; `learn` gets labels for what was picked and trains. A shell that has to wait for
labels keeps what was chosen in between.

Round 0 labels an initial set, at random unless `loop.initial` says otherwise. Round r ≥ 1 scores the pool with the
model of round r − 1, so its query is number t = r − 1. Every key is folded from the run's key and the round, and the
adapter is trained anew each round, so a run can be taken up after any round and goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.strategy import Strategy
from star_jax.active.pool import available, init_pool, label, skip
from star_jax.active.query import (
    first_strategy,
    initial,
    picker,
    query_keys,
    query_of,
    requests_of,
    round_keys,
    score_and_pick,
    spare_requests,
)
from star_jax.active.state import Choice, LoopState, Observer, Problem, RoundInfo, Unobserved
from star_jax.annotators.annotator import Request, collect
from star_jax.config import ExperimentConfig
from star_jax.data.examples import Example
from star_jax.data.splits import hold_out
from star_jax.training.trainer import FitResult, TrainingRows, fit

Array = jax.Array


def init(pool_size: int) -> LoopState:
    """Before the first round."""
    return LoopState(0, init_pool(pool_size), {})


def step(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    key: Array,
    observer: Observer | None = None,
) -> tuple[LoopState, RoundInfo]:
    """One round: query, label, train.

    Args:
      config: the experiment.
      strategy: from the registry.
      problem: pool, model, annotator.
      state: after the round before.
      key: of the whole run; the round is folded in.
      observer: told what is going on.

    Returns:
      The state after this round, and what happened.

    Raises:
      as `choose` and `learn`.
    """
    choice = choose(config, strategy, problem, state, key, observer)
    return learn(config, problem, state, choice, key, observer, strategy)


def choose(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    key: Array,
    observer: Observer | None = None,
) -> Choice:
    """The first half of a round: what to label next. Arguments as in `step`.

    Where fewer examples are left than a round labels, it is all of them.

    Raises:
      ConfigError: Monte-Carlo samples at dropout 0.
      ScoreError: a score is not finite; the ids are named.
    """
    keys = query_keys(key, state)
    left = int(np.sum(np.asarray(available(state.pool))))
    asker = strategy if state.round else first_strategy(config)
    count = min(config.loop.labels_per_round if state.round else config.loop.initial_labels, left)
    if asker is None:
        return initial(keys.select, state, count)
    if not left:
        return Choice(jnp.zeros(0, jnp.int32))
    query = query_of(config, state, count)
    return score_and_pick(config, asker, problem, state, keys, query, observer)


def learn(
    config: ExperimentConfig,
    problem: Problem,
    state: LoopState,
    choice: Choice,
    key: Array,
    observer: Observer | None = None,
    strategy: Strategy | None = None,
) -> tuple[LoopState, RoundInfo]:
    """The second half of a round: labels for what was chosen, and a training on all of them.

    What nobody can label is replaced by what the same query would have picked next, so that the round gets its number
    of labels as long as there are examples.

    Args:
      config, problem, state, key, observer: as in `step`.
      choice: what `choose` returned for this state.
      strategy: that it was chosen with; nothing is replaced where it is None.

    Raises:
      LabelsNeeded: the annotator waits for a person; the same call later goes on.
      FloatingPointError: training diverged.
    """
    _, _, train_key = round_keys(key, state)
    # 1. Labels for what was chosen; what was skipped leaves the pool without one.
    name: str | None = None
    by: str | None = None
    spare: Iterator[Request] = iter(())
    if strategy is not None:
        name, by = strategy.name, picker(config, strategy, first=not state.round)
        spare = spare_requests(config, strategy, problem, state, choice, key, observer)
    answers = collect(problem.annotator, requests_of(problem, choice, name, by), spare)
    place = {prompt.id: index for index, prompt in enumerate(problem.prompts)}
    picked = np.asarray([place[answer.id] for answer in answers], np.int32)
    skipped = np.asarray([answer.skipped for answer in answers], bool)
    # From the host, so that no program of a later round is compiled again for where the scores lie.
    pool = label(state.pool, jnp.asarray(picked), state.round)
    if skipped.any():
        pool = skip(pool, jnp.asarray(picked[skipped]))
    bought = {
        index: one.response for index, one in zip(picked.tolist(), answers, strict=True) if one.response is not None
    }
    labels = dict(sorted([*state.labels.items(), *bought.items()]))
    # 2. A training on all labels so far.
    fitted, validation = train(config, problem, labels, train_key, observer)
    # 3. What the next round needs, and what a person wants to see.
    scores, base, full, tokens = (None if leaf is None else np.asarray(leaf) for leaf in choice[1:5])
    # Of what replaces a skipped example, nothing is known: it was not among the picks.
    guessed = dict(zip(np.asarray(choice.picked).tolist(), choice.guesses or (), strict=False))
    guesses = [guessed.get(index) for index in picked.tolist()] if guessed else None
    seen = (scores, base, full, tokens, validation, answers, fitted.step_losses, guesses)
    info = RoundInfo(picked, len(labels), fitted.loss, *seen)
    return LoopState(state.round + 1, pool, labels, fitted.adapter, {**state.base, **choice.base_features}), info


def train(
    config: ExperimentConfig,
    problem: Problem,
    labels: Mapping[int, str],
    key: Array,
    observer: Observer | None = None,
) -> tuple[FitResult, list[Example]]:
    """Trains a fresh adapter on all labels, but for the share that is held out.

    Args:
      config: the experiment.
      problem: pool, model, replay rows.
      labels: index in the pool -> response.
      key: PRNG key of the training.
      observer: told how far it is.

    Returns:
      The training's result, and the examples that were held out.

    Raises:
      ConfigError: nothing is left to train on.
      FloatingPointError: training diverged.
    """
    examples = [Example(problem.prompts[index], response) for index, response in labels.items()]
    training, validation = hold_out(examples, config.training.validation_fraction)
    with (observer or Unobserved()).phase(
        "train", len(training) * config.training.epochs_of(len(training)), "examples"
    ) as tick:
        fitted = fit(
            key,
            problem.model,
            TrainingRows(problem.encoder.examples(training), problem.replay, problem.shapes.training),
            config.lora,
            config.training,
            start=problem.start,
            on_step=tick,
        )
    return fitted, validation
