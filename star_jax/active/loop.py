"""STAR's loop: `init`, and `step`, which is `choose` and `learn`. The only wiring there is.

`choose` scores the pool and picks; `learn` gets labels for what was picked and trains. A shell that has to wait for
labels keeps what was chosen in between.

Round 0 labels a random initial set. Round r ≥ 1 scores the pool with the model of round r − 1, so its query is
number t = r − 1. Every key is folded from the run's key and the round, and the adapter is trained anew each
round, so a run can be taken up after any round and goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.needs import Feature, Measure
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
    select_key, score_key, _ = _round_keys(key, state)
    left = int(np.sum(np.asarray(available(state.pool))))
    if state.round == 0:
        return initial(select_key, state, min(config.loop.initial_labels, left))
    if not left:
        return Choice(jnp.zeros(0, jnp.int32))
    query = _query(config, state, min(config.loop.labels_per_round, left))
    return score_and_pick(config, strategy, problem, state, (select_key, score_key), query, observer)


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
    _, _, train_key = _round_keys(key, state)
    # 1. Labels for what was chosen; what was skipped leaves the pool without one.
    name: str | None = None
    spare: Iterator[Request] = iter(())
    if strategy is not None:
        name, spare = strategy.name, _spare_requests(config, strategy, problem, state, choice, key, observer)
    answers = collect(problem.annotator, requests_of(problem, choice, name), spare)
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
    picked = np.asarray(choice.picked).tolist()
    return [_request(problem, choice, index, rank, strategy) for rank, index in enumerate(picked)]


def _request(problem: Problem, choice: Choice, index: int, rank: int, strategy: str | None) -> Request:
    score = None if choice.scores is None else float(np.asarray(choice.scores)[index])
    return Request(problem.prompts[index], rank, score, strategy)


def _spare_requests(
    config: ExperimentConfig,
    strategy: Strategy,
    problem: Problem,
    state: LoopState,
    choice: Choice,
    key: Array,
    observer: Observer | None,
) -> Iterator[Request]:
    """What the query of a choice would ask for next, one example after the other, until the pool is used up.

    The query is made again for twice as many, then for three times as many, and so on, so that scores that are
    relative to what is unlabelled stay the same. An example's turn does not depend on when somebody has said which
    others are to be skipped, and a run that was stopped in between asks for the same.
    """
    select_key, score_key, _ = _round_keys(key, state)
    unlabelled, features = available(state.pool), _features_of(strategy, choice)
    asked, size, left = np.asarray(choice.picked).tolist(), len(choice.picked), int(np.sum(np.asarray(unlabelled)))
    rank = len(asked)
    while len(asked) < left:
        size = min(size + len(choice.picked), left)
        if state.round == 0:
            found = np.asarray(_initial(select_key, unlabelled, count=size))
        else:
            if features is None:
                computed = compute_features(config, strategy, problem, state, score_key, observer or Unobserved())
                features = tuple(computed.arrays[need] for need in strategy.needs)
            found = np.asarray(select(strategy, select_key, features, unlabelled, _query(config, state, size))[0])
            check_picks(strategy, found, np.asarray(unlabelled))
        before = set(asked)
        fresh = [index for index in found.tolist() if index not in before]
        asked += fresh
        for index in fresh:
            yield _request(problem, choice, index, rank, strategy.name)
            rank += 1


def _features_of(strategy: Strategy, choice: Choice) -> tuple[Array, ...] | None:
    """All that the strategy needs, where the choice has it: one measure of each model at most, and nothing else."""
    known: dict[Feature, Array | None] = {}
    known |= dict.fromkeys(strategy.measures("base")[:1], choice.base)
    known |= dict.fromkeys(strategy.measures("full")[:1], choice.full)
    features = tuple(values for values in (known.get(need) for need in strategy.needs) if values is not None)
    return features if len(features) == len(strategy.needs) else None


def _query(config: ExperimentConfig, state: LoopState, count: int) -> Query:
    """Number t = r − 1 in round r."""
    return Query(jnp.asarray(state.round - 1), config.loop.rounds - 1, count)


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
