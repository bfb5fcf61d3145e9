"""The programs of a run, and how often they are run."""

import dataclasses
import math

import pytest

from star_jax.acquisition.strategy import get_strategy
from star_jax.config import AcquisitionConfig, EvaluationConfig, ScoringConfig
from star_jax.planning.programs import Batches, passes_of, programs_of, query_sizes


def programs(experiment, devices=1, closed=0):
    batches = Batches(experiment.config, experiment.lengths, devices, closed)
    found = programs_of(experiment.config, experiment.strategies, experiment.first, batches)
    return {name: [one for one in found if one.name == name] for name in dict.fromkeys(one.name for one in found)}


def test_passes_are_those_of_a_loop(planned):
    """STAR needs the base model once, and samples of the fine-tuned one in each query; random nothing."""
    experiment = planned()
    pool, labelled, sampled = set(range(50)), set(range(10)), 0
    for _ in range(experiment.config.loop.rounds - 1):
        left = sorted(pool - labelled)
        sampled += len(left)
        labelled |= set(left[: experiment.config.loop.labels_per_round])
    found = passes_of(experiment.config, experiment.strategies, None, len(pool))
    assert found == (50, 0, sampled, 0, 0, 0)
    assert passes_of(experiment.config, [get_strategy("random")], None, 50) == (0, 0, 0, 0, 0, 0)
    assert passes_of(experiment.config, [get_strategy("random")], get_strategy("k_center"), 50) == (0, 0, 0, 0, 50, 0)


@pytest.mark.parametrize(
    ("name", "posterior", "found"),
    [
        ("badge", "dropout", (0, 100, 0, 0, 0, 100)),
        ("epig", "dropout", (0, 0, 75, 0, 0, 0)),
        ("star", "none", (50, 75, 0, 0, 0, 0)),
    ],
)
def test_what_is_no_measure_is_answered_and_scored_too(planned, name, posterior, found):
    """Two queries of 50 prompts, 75 of them unlabelled. Gradients are of the answers to all prompts."""
    config = planned(scoring=ScoringConfig(posterior=posterior)).config
    assert passes_of(config, [get_strategy(name)], None, 50) == found


def test_drawn_answers_are_a_pass_of_their_own(planned):
    experiment = planned()
    found = passes_of(experiment.config, [get_strategy("vote_entropy")], None, 50)
    assert found == (0, 0, 0, 75, 0, 0)
    drawn = programs(dataclasses.replace(experiment, strategies=[get_strategy("vote_entropy")]))["drawn answers"]
    assert drawn[0].batches == math.ceil(2 * 8 * 75 / 4)


def test_a_part_of_the_pool_is_scored_where_that_is_asked_for(planned):
    experiment = planned(acquisition=AcquisitionConfig(score_at_most=15))
    assert query_sizes(experiment.config, 50) == [15, 15]
    assert passes_of(experiment.config, experiment.strategies, None, 50)[:3] == (30, 0, 30)


@pytest.mark.parametrize("devices", [1, 2])
def test_every_example_has_room_in_the_batches(planned, devices):
    """All rows are as long as they may be: 50 in the pool, 75 in two queries, 20 in the test set; two seeds."""
    found = programs(planned(), devices)
    answered = {
        "base model on the pool": 2 * 50,
        "model on the pool": 2 * 75,
        "model on the test set": 2 * 20 * (2 * 3 + 1),
    }
    scored = {"3 dropout samples on the pool": 2 * 75, "test responses scored": 2 * 20 * 2 * 3}
    for name, examples in (answered | scored).items():
        (program,) = found.pop(name)
        held = program.shape.rows if name in answered else program.shape.capacity // 12
        assert program.batches == math.ceil(examples / (held * devices))
    (name,) = found
    steps = sum(2 * math.ceil(labels / 4) for labels in (10, 15, 20)) * 4
    assert sum(one.batches for one in found[name]) == pytest.approx(steps)


def test_a_closed_set_is_scored_and_judged_without_writing(planned):
    experiment = planned(scoring=ScoringConfig(answers="candidates"), evaluation=EvaluationConfig(answers="auto"))
    found = programs(experiment, closed=6)
    assert {one.kind for same in found.values() for one in same} == {"choose", "train", "score"}
    assert found["base model on the pool"][0].predicted == pytest.approx(
        found["base model on the pool"][0].shape.capacity * 6 / 14
    )


def test_what_a_run_does_not_do_is_no_program(planned):
    experiment = dataclasses.replace(planned(), strategies=[get_strategy("random")])
    assert "3 dropout samples on the pool" not in programs(experiment)
    assert "base model on the pool" not in programs(experiment)
