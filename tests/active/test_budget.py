"""Budgets in tokens or money: which picks fit, which are best for their cost, who knows what a label costs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.strategy import get_strategy
from star_jax.active.budget import affordable, by_score_per_cost, check_picks_by_score, check_priced
from star_jax.active.state import Choice
from star_jax.annotators.oracle import SimulatedOracle
from star_jax.annotators.simulated import SimulatedAnnotator
from star_jax.config import AcquisitionConfig, ExperimentConfig, LoopConfig
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError

COST = LoopConfig(budget_unit="cost", budget_per_round=5)


@pytest.mark.parametrize(
    ("left", "least", "kept"),
    [(100, 0, 4), (10, 0, 4), (9.99, 0, 3), (3, 0, 2), (0.5, 0, 0), (0.5, 1, 1), (-2, 0, 0), (0, 9, 4)],
)
def test_the_first_picks_that_fit_are_kept(left, least, kept):
    choice = Choice(jnp.asarray([2, 0, 3, 1]), guesses=["c", "a", "d", "b"])
    costs = np.asarray([2.0, 4.0, 1.0, 3.0])  # 1, 2, 3 and 4 in their order
    found = affordable(choice, costs, left, least)
    assert found.picked.tolist() == [2, 0, 3, 1][:kept]
    assert found.guesses == ["c", "a", "d", "b"][:kept]


def test_picks_are_those_with_the_most_score_for_their_cost(rng):
    scores, costs, offered = rng.normal(size=40), rng.uniform(1, 9, 40), rng.random(40) < 0.7
    picked = by_score_per_cost(jnp.asarray(scores, jnp.float32), costs, jnp.asarray(offered), 8)
    worth = (scores - min(scores[offered].min(), 0)) / costs
    best = sorted(np.flatnonzero(offered), key=lambda index: -worth[index])[:8]
    assert picked.tolist() == best


def test_what_costs_nothing_comes_first():
    picked = by_score_per_cost(jnp.asarray([1.0, 2.0, 3.0]), np.asarray([0.0, 1.0, 1.0]), jnp.ones(3, bool), 2)
    assert picked.tolist() == [0, 2]


@pytest.mark.parametrize("name", ["star", "bald", "pe_subtract", "random"])
def test_strategies_by_score_can_pick_by_cost(name):
    check_picks_by_score(get_strategy(name))


@pytest.mark.parametrize(
    ("name", "options"), [("typiclust", {}), ("uncertain_then_diverse", {}), ("star", {"selection": "power"})]
)
def test_others_cannot(name, options):
    with pytest.raises(ConfigError, match=f"strategy {name} does not pick the highest scores alone"):
        check_picks_by_score(get_strategy(name, AcquisitionConfig(**options)))


def test_money_needs_somebody_who_knows_the_price():
    config = ExperimentConfig(loop=COST)
    check_priced(config, SimulatedAnnotator({}, (), get_task("skills")))
    with pytest.raises(ConfigError, match="annotator auto does not say what a label costs"):
        check_priced(config, SimulatedOracle({}))
    check_priced(dataclasses.replace(config, loop=LoopConfig()), SimulatedOracle({}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget_unit": "tokens"}, "loop.budget_unit is tokens and loop.budget_per_round is none"),
        ({"budget_per_round": 3.0}, r"loop.budget_unit is labels and loop.budget_per_round is 3.0"),
        ({"budget_unit": "cost", "budget_per_round": -1.0}, "it must be above 0"),
        ({"budget_unit": "cost", "budget_per_round": float("nan")}, "it must be a finite number"),
    ],
)
def test_a_unit_and_an_amount_belong_together(fields, message):
    with pytest.raises(ConfigError, match=message):
        LoopConfig(**fields)


def test_score_per_cost_needs_a_cost():
    with pytest.raises(ConfigError, match=r"acquisition.per_cost is true and loop.budget_unit is labels"):
        ExperimentConfig(acquisition=AcquisitionConfig(per_cost=True))
