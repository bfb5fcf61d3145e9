"""Budgets in tokens or money: what a label will cost, which picks a round can pay for, and picks by score per cost.

Shapes: `N` pool, `k` picks.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.selection import top_k
from star_jax.acquisition.settings import dtype_of, shape_of
from star_jax.acquisition.strategy import Query, Strategy, pick
from star_jax.active.state import Choice, LoopState, Problem
from star_jax.annotators.annotator import Priced, Request
from star_jax.config import ExperimentConfig
from star_jax.data.examples import Example
from star_jax.errors import ConfigError

Array = jax.Array

_TRIED = 24
"""Examples of the pool that a strategy is tried on."""


def expected_costs(config: ExperimentConfig, problem: Problem, state: LoopState) -> np.ndarray:
    """What a label of each example is expected to cost in `loop.budget_unit`, `N`.

    In tokens, those of its prompt and of a response as long as those so far are on average; in money, what the
    annotator says beforehand; in labels, 1.

    Raises:
      ConfigError: the unit is cost, and the annotator does not know what a label costs.
    """
    size = len(problem.prompts)
    if config.loop.budget_unit == "tokens":
        lengths = np.asarray([len(tokens) for tokens in problem.tokens], np.float64)
        return lengths + (float(np.mean(_response_tokens(problem, state.labels))) if state.labels else 0.0)
    if config.loop.budget_unit == "cost":
        check_priced(config, problem.annotator)
        assert isinstance(problem.annotator, Priced)
        return np.asarray(problem.annotator.price([Request(prompt) for prompt in problem.prompts]), np.float64)
    return np.ones(size)


def check_priced(config: ExperimentConfig, annotator: object) -> None:
    """Refuses a budget in money where nobody knows what a label costs."""
    if config.loop.budget_unit == "cost" and not isinstance(annotator, Priced):
        raise ConfigError(
            f"loop.budget_unit is cost, and annotator {config.annotator} does not say what a label costs; choose "
            "tokens or labels, or an annotator that does, such as llm"
        )


def spent_tokens(problem: Problem, answers: Mapping[int, str | None]) -> int:
    """Tokens of prompts and responses that were labelled; of a skipped one the prompt's.

    Args:
      problem: pool and tokenizer.
      answers: index in the pool -> response, None for a skip.
    """
    labels = {index: response for index, response in answers.items() if response is not None}
    return sum(len(problem.tokens[index]) for index in answers) + sum(_response_tokens(problem, labels))


def _response_tokens(problem: Problem, labels: Mapping[int, str]) -> list[int]:
    examples = [Example(problem.prompts[index], response) for index, response in labels.items()]
    return [len(row.tokens) - row.prompt_length for row in problem.encoder.examples(examples, counted=True)]


def affordable(choice: Choice, costs: np.ndarray, left: float, least: int = 0) -> Choice:
    """The choice without the picks that the budget has no room for: those from the first on with which it is exceeded.

    Args:
      choice: first pick first.
      costs: `N`, expected.
      left: what may be spent.
      least: picks that are kept whatever they cost.
    """
    picked = np.asarray(choice.picked)
    fits = int(np.searchsorted(np.cumsum(costs[picked]), left * (1 + 1e-9), side="right"))
    count = min(max(fits, least), len(picked))
    guesses = None if choice.guesses is None else list(choice.guesses)[:count]
    return choice._replace(picked=jnp.asarray(picked[:count]), guesses=guesses)


def by_score_per_cost(scores: Array, costs: np.ndarray, offered: Array, count: int) -> Array:
    """The `count` offered examples with the most score for their cost, `k` int32.

    As in the power selection, scores below 0 are shifted so that the least offered one is 0.

    Args:
      scores: `N`.
      costs: `N`, above 0 where a score is to count at all; what costs nothing comes first.
      offered: `N` bool.
      count: k.
    """
    lowest = jnp.where(offered, scores, jnp.inf).min()
    positive = jnp.where(offered, scores - jnp.minimum(lowest, 0), 0)
    return top_k(positive / jnp.maximum(jnp.asarray(costs, jnp.float32), 1e-30), offered, count)


def check_picks_by_score(strategy: Strategy) -> None:
    """Refuses `acquisition.per_cost` for a strategy whose picks are more than the highest scores, tried on noise.

    A strategy without scores picks as it does anyway.

    Raises:
      ConfigError: naming the strategy.
    """
    keys = jax.random.split(jax.random.key(0), len(strategy.needs) + 1)
    features = [
        (4 * jax.random.uniform(key, shape_of(need, _TRIED))).astype(dtype_of(need))
        for key, need in zip(keys[1:], strategy.needs, strict=True)
    ]
    unlabelled = jnp.arange(_TRIED) % 4 != 0
    picked, scores = pick(strategy, keys[0], features, unlabelled, Query(jnp.asarray(0), 2, _TRIED // 4))
    if scores is not None and (np.asarray(picked) != np.asarray(top_k(scores, unlabelled, _TRIED // 4))).any():
        raise ConfigError(
            f"acquisition.per_cost is true, and strategy {strategy.name} does not pick the highest scores alone; leave "
            "it out, or choose another strategy or acquisition.selection"
        )
