"""Settings that contradict each other, refused in a sentence before anything is read."""

import pytest

from star_jax.acquisition.strategy import get_strategy
from star_jax.config import (
    AcquisitionConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    FormatConfig,
    LoopConfig,
)
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError
from star_jax.experiment.checks import check_experiment


def test_a_query_scores_at_least_what_it_picks():
    task = get_task("skills")

    def check(most, strategy, initial="random"):
        loop = LoopConfig(initial_labels=30, labels_per_round=20, initial=initial)
        config = ExperimentConfig(acquisition=AcquisitionConfig(score_at_most=most), loop=loop)
        check_experiment(config, [get_strategy(strategy)], task)

    check(20, "entropy")
    check(19, "random")  # it scores nothing
    check(30, "entropy", "k_center")
    said = r"^acquisition\.score_at_most is {}, and a query picks loop\.{} of what it scores; raise"
    with pytest.raises(ConfigError, match=said.format(19, "labels_per_round = 20")):
        check(19, "entropy")
    with pytest.raises(ConfigError, match=said.format(29, "initial_labels = 30")):
        check(29, "entropy", "k_center")
    with pytest.raises(ConfigError, match=r"^acquisition\.score_at_most is 0; it must be at least 1, or none$"):
        AcquisitionConfig(score_at_most=0)


def test_only_a_closed_set_is_judged_as_one():
    task = get_task("skills")
    for answers in ("auto", "generated"):
        check_experiment(ExperimentConfig(evaluation=EvaluationConfig(answers=answers)), [], task)
    with pytest.raises(
        ConfigError, match=r"^evaluation\.answers is candidates, but task skills has no closed answer set"
    ):
        check_experiment(ExperimentConfig(evaluation=EvaluationConfig(answers="candidates")), [], task)


@pytest.mark.parametrize(
    ("asked", "scored", "closed"),
    [
        ("generated", "candidates", False),
        ("candidates", "generated", True),
        ("auto", "candidates", True),
        ("auto", "generated", False),
        ("auto", "reference", False),
    ],
)
def test_auto_judges_what_is_scored(asked, scored, closed):
    assert EvaluationConfig(answers=asked).judges_candidates(scored) == closed


def test_runs_of_before_go_on_as_they_began():
    """A setting that a run's config.yaml lacks counts as its default."""
    assert EvaluationConfig().answers == "generated"


def test_a_strategy_that_looks_at_groups_is_not_shown_labels():
    """A report may be by label; the groups of a pool are known before anybody has labelled it."""

    def check(strategy, group):
        form = FormatConfig(prompt="{{ text }}", response="{{ topic }}", answers=("a", "b"), group=group)
        config = ExperimentConfig(data=DataConfig(task="generic", train="t", test="t"), format=form)
        check_experiment(config, [get_strategy(strategy)], get_task("generic", form))

    check("group_balanced", "source")
    check("group_balanced", None)
    for strategy in ("class_balanced", "entropy"):
        check(strategy, "topic")
    with pytest.raises(ConfigError, match=r"^strategy group_balanced looks .* format\.group is topic, a column of la"):
        check("group_balanced", "topic")
