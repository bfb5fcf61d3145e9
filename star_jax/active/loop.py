"""STAR's loop: `init`, and `step`, which is `choose` and `learn`. The only wiring there is.

`choose` scores the pool and picks; `learn` gets labels for what was picked and trains. A shell that has to wait for
labels keeps what was chosen in between.

Round 0 labels a random initial set. Round r ≥ 1 scores the pool with the model of round r − 1, so its query is
number t = r − 1. Every key is folded from the run's key and the round, and the adapter is trained anew each
round, so a run can be taken up after any round and goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Measure
from star_jax.acquisition.pool_scoring import answer_texts
from star_jax.acquisition.selection import uniform
from star_jax.acquisition.strategy import Query, Strategy, check_finite, check_picks, pick
from star_jax.active.features import Features, compute_features
from star_jax.active.pool import available, init_pool, label, skip
from star_jax.active.state import Choice, LoopState, Observer, Problem, RoundInfo, Unobserved
from star_jax.annotators.annotator import Request, collect
from star_jax.config import ExperimentConfig
from star_jax.data.examples import Example, Prompt
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
    return learn(config, problem, state, choose(config, strategy, problem, state, key, observer), key, observer)


def choose(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    key: Array,
    observer: Observer | None = None,
) -> Choice:
    """The first half of a round: what to label next. Arguments as in `step`.

    Raises:
      ConfigError: Monte-Carlo samples at dropout 0.
      ScoreError: a score is not finite; the ids are named.
    """
    select_key, score_key, _ = _round_keys(key, state)
    if state.round == 0:
        return initial(select_key, state, config.loop.initial_labels)
    query = Query(jnp.asarray(state.round - 1), config.loop.rounds - 1, config.loop.labels_per_round)
    return score_and_pick(config, strategy, problem, state, (select_key, score_key), query, observer)


def learn(
    config: ExperimentConfig,
    problem: Problem,
    state: LoopState,
    choice: Choice,
    key: Array,
    observer: Observer | None = None,
) -> tuple[LoopState, RoundInfo]:
    """The second half of a round: labels for what was chosen, and a training on all of them.

    Args:
      config, problem, state, key, observer: as in `step`.
      choice: what `choose` returned for this state.

    Raises:
      LabelsNeeded: the annotator waits for a person; the same call later goes on.
      FloatingPointError: training diverged.
    """
    _, _, train_key = _round_keys(key, state)
    # 1. Labels for what was chosen; what was skipped leaves the pool without one.
    picked = np.asarray(choice.picked)
    answers = collect(problem.annotator, requests_of(problem, choice))
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
    seen = (scores, base, full, tokens, validation, answers, fitted.step_losses, choice.guesses)
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
    with (observer or Unobserved()).phase("train", len(training) * config.training.epochs, "examples") as tick:
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


def requests_of(problem: Problem, choice: Choice, strategy: str | None = None) -> list[Request]:
    """What a choice asks to be labelled, first pick first."""
    picked, scores = np.asarray(choice.picked).tolist(), choice.scores
    values = [None] * len(picked) if scores is None else [float(value) for value in np.asarray(scores)[picked]]
    return [
        Request(problem.prompts[index], rank, value, strategy)
        for rank, (index, value) in enumerate(zip(picked, values, strict=True))
    ]


def _round_keys(key: Array, state: LoopState) -> Array:
    """Keys of selection, scoring and training."""
    return jax.random.split(jax.random.fold_in(key, state.round), 3)


def initial(key: Array, state: LoopState, count: int) -> Choice:
    """A random choice of `count` unlabelled examples."""
    return Choice(_initial(key, available(state.pool), count=count))


def score_and_pick(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    keys: tuple[Array, Array],
    query: Query,
    observer: Observer | None = None,
) -> Choice:
    """Computes the features that the strategy needs, and picks; nothing is read back before the end.

    Args:
      config: the experiment.
      strategy: from the registry.
      problem: pool and model.
      state: with the adapter of a training.
      keys: PRNG keys of the selection and of the dropout masks.
      query: which query this is.
      observer: told how far the scoring is.

    Raises:
      ConfigError, ScoreError: as `choose`.
    """
    select_key, score_key = keys
    computed = compute_features(config, strategy, problem, state, score_key, observer or Unobserved())
    unlabelled = available(state.pool)
    features = tuple(computed.arrays[need] for need in strategy.needs)
    picked, scores = select(strategy, select_key, features, unlabelled, query)
    check(strategy, problem.prompts, computed, np.asarray(unlabelled), picked)
    if not strategy.needs:
        return Choice(picked)
    base, full = (
        next((computed.arrays[need] for need in strategy.measures(model)), None) for model in ("base", "full")
    )
    guesses = (
        None if computed.answered is None else answer_texts(problem.encoder, problem.pool, computed.answered, picked)
    )
    return Choice(picked, scores, base, full, computed.response_tokens, computed.base, guesses)


@partial(jax.jit, static_argnames=("strategy",))
def select(
    strategy: Strategy, key: Array, features: tuple[Array, ...], unlabelled: Array, query: Query
) -> tuple[Array, Array | None]:
    """The strategy's picks by one program; arguments and errors as those of `acquisition.strategy.pick`."""
    return pick(strategy, key, features, unlabelled, query)


def check(
    strategy: Strategy,
    prompts: Sequence[Prompt],
    computed: Features,
    unlabelled: np.ndarray,
    picked: Array,
) -> None:
    """Refuses features that are not finite, and picks that are none of the pool.

    Checked before a pick is used, after it was made: features are read back once, not before each step.

    Raises:
      ScoreError: naming the examples.
      ConfigError: naming the strategy.
    """
    names = [prompt.id for prompt in prompts]
    for feature, values in computed.arrays.items():
        read = np.flatnonzero(unlabelled) if isinstance(feature, Measure) else np.arange(len(names))
        check_finite(np.asarray(values)[read], [names[place] for place in read.tolist()])
    check_picks(strategy, np.asarray(picked), unlabelled)


@partial(jax.jit, static_argnames=("count",))
def _initial(key: Array, mask: Array, *, count: int) -> Array:
    return uniform(key, mask, count)
