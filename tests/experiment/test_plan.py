"""Which strategies run where nobody has said, and how many labels are asked for at most."""

import dataclasses
import itertools

import pytest

from star_jax.config import AUTO, ExperimentConfig, LoopConfig
from star_jax.data.examples import Prompt
from star_jax.data.run_data import RunData
from star_jax.errors import ConfigError
from star_jax.experiment.plan import chosen_strategies, most_labels, said_of_labels

CONFIG = ExperimentConfig(loop=LoopConfig(initial_labels=50, labels_per_round=50, rounds=5))


def data(size, labelled=0, first=0, skipped=0):
    pool = [Prompt(f"q{number}", "?") for number in range(first, first + size)]
    skips = frozenset(one.id for one in pool[labelled : labelled + skipped])
    return RunData(pool, [], {one.id: "x" for one in pool[:labelled]}, None, frozenset(), {}, skips)


def test_a_person_is_not_made_to_label_for_a_comparison_nobody_asked_for(tmp_path):
    config = dataclasses.replace(CONFIG, output_dir=str(tmp_path))
    assert config.strategies == (AUTO,)
    assert chosen_strategies(config, {0: data(999, 999)}) == ("star", "random")
    assert chosen_strategies(config, {0: data(999, 998, skipped=1)}) == ("star", "random")
    for open_rows in ({0: data(999)}, {0: data(999, 998)}, {0: data(999, 999), 1: data(999)}):
        assert chosen_strategies(config, open_rows) == ("star",)
        for said in (("star", "random"), ("random",), ("entropy",)):
            assert chosen_strategies(dataclasses.replace(config, strategies=said), open_rows) == said


def test_what_an_earlier_release_has_begun_is_gone_on_with(tmp_path):
    config = dataclasses.replace(CONFIG, output_dir=str(tmp_path))
    (tmp_path / "random" / "seed-0").mkdir(parents=True)
    assert chosen_strategies(config, {0: data(999)}) == ("star",)
    (tmp_path / "random" / "seed-0" / "config.yaml").touch()
    assert chosen_strategies(config, {0: data(999)}) == ("star", "random")


def test_auto_stands_alone():
    with pytest.raises(ConfigError, match="strategies names auto beside others"):
        ExperimentConfig(strategies=("auto", "star"))


def test_the_most_that_is_asked_for_is_what_no_choice_of_examples_exceeds():
    """Every way in which two strategies with two seeds may pick, in a pool of four: three labels a run."""
    config = dataclasses.replace(CONFIG, loop=LoopConfig(initial_labels=2, labels_per_round=1, rounds=2))
    names, pools = ("star", "random"), {0: data(4), 1: data(4)}
    worst = 0
    firsts = list(itertools.combinations(range(4), 2))
    for first, second in itertools.product(firsts, firsts):
        for picks in itertools.product(range(4), repeat=4):
            later = [pick for pick, seen in zip(picks, (first, first, second, second), strict=True) if pick not in seen]
            worst = max(worst, len({*first, *second, *later}))
    assert most_labels(config, names, pools) == worst == 4
    assert most_labels(config, names, {0: data(4)}) == 4
    assert most_labels(config, names[:1], {0: data(4)}) == 3


@pytest.mark.parametrize(
    ("strategies", "pools", "most"),
    [
        (("star",), {0: data(999)}, 250),
        (("star", "random"), {0: data(999)}, 450),
        (("star", "random"), {0: data(999), 1: data(999)}, 900),
        (("star", "random"), {0: data(400), 1: data(400)}, 400),
        (("star",), {0: data(400), 1: data(400, first=400)}, 500),
        (("star", "random"), {0: data(999, 800)}, 199),
        (("star",), {0: data(300, 100, skipped=10)}, 190),
    ],
)
def test_the_most_labels_of_a_whole_experiment(strategies, pools, most):
    config = dataclasses.replace(CONFIG, strategies=strategies, seeds=tuple(pools))
    assert most_labels(config, strategies, pools) == most
    assert said_of_labels(config, strategies, pools).startswith(f"asks for at most {most} labels altogether, for star")


def test_what_is_said_before_the_first_label():
    pools = {0: data(999)}
    assert said_of_labels(CONFIG, ("star",), pools) == (
        "asks for at most 250 labels altogether, for star (50 + 4 x 50 a run); --strategies star,random compares and "
        "asks for at most 450"
    )
    assert said_of_labels(dataclasses.replace(CONFIG, strategies=("star", "random")), ("star", "random"), pools) == (
        "asks for at most 450 labels altogether, for star, random (50 + 4 x 50 a run, the first batch shared)"
    )
    assert said_of_labels(CONFIG, ("star", "random"), {0: data(999, 999)}) is None
    assert said_of_labels(dataclasses.replace(CONFIG, annotator="oracle"), ("star",), pools) is None
