"""The plug-in that the pages show: against a slow loop, under the contract, and in a run."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.strategy import Query, get_strategy, pick
from star_jax.cli.guard import guarded_main
from star_jax.cli.run import main
from star_jax.registry import load_plugins
from star_jax.testing import check_strategy

PLUGIN = Path(__file__).parents[2] / "docs" / "examples" / "k_center.py"


@pytest.fixture
def strategy():
    load_plugins([str(PLUGIN)])
    return get_strategy("my_k_center")


def greedy(points, unlabelled, count):
    """Greedy k-center, one distance at a time."""
    left = np.flatnonzero(unlabelled).tolist()
    centres = np.flatnonzero(~unlabelled).tolist()
    picks = []
    if not centres:
        picks = [min(left, key=lambda place: np.linalg.norm(points[place] - np.mean(points, axis=0)))]
    while len(picks) < count:
        rest = [place for place in left if place not in picks]
        nearest = {
            place: min(np.linalg.norm(points[place] - points[one]) for one in [*centres, *picks]) for place in rest
        }
        picks.append(max(rest, key=nearest.__getitem__))
    return picks


@pytest.mark.parametrize(("size", "count"), [(17, 1), (17, 5), (17, 17), (30, 1), (30, 6)])
def test_it_picks_as_a_slow_loop_does(strategy, rng, size, count):
    """From what is labelled, and of a pool in which nothing is."""
    points = rng.normal(size=(30, 8)).astype(np.float32)
    unlabelled = np.zeros(30, bool)
    unlabelled[rng.permutation(30)[:size]] = True
    query = Query(0, 9, count)
    got, _ = pick(strategy, jax.random.key(0), [jnp.asarray(points)], jnp.asarray(unlabelled), query)
    assert np.asarray(got).tolist() == greedy(points, unlabelled, count)


def test_equal_points_are_still_picked_once_each(strategy):
    points, unlabelled = jnp.ones((6, 3)), jnp.asarray([True, False, True, True, False, True])
    got, _ = pick(strategy, jax.random.key(0), [points], unlabelled, Query(0, 1, 4))
    assert sorted(np.asarray(got).tolist()) == [0, 2, 3, 5]


def test_it_keeps_the_contract(strategy):
    check_strategy(strategy, draws=False)


def test_it_is_as_short_as_the_pages_say():
    assert len(PLUGIN.read_text().splitlines()) <= 30


def test_it_runs_as_a_plugin(tmp_path):
    flags = {
        "plugins": PLUGIN,
        "strategies": "my_k_center",
        "output-dir": tmp_path,
        "lora.targets": "v_proj",
        "lora.rank": 2,
        "training.epochs": 1,
        "training.replay": "none",
        "training.replay-rows": 0,
        "loop.initial-labels": 6,
        "loop.labels-per-round": 4,
        "loop.rounds": 2,
        "data.pool-size": 24,
        "data.test-limit": 12,
        "scoring.batch-size": 16,
        "generation.batch-size": 16,
    }
    argv = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert guarded_main(main, argv) == 0
    folder = tmp_path / "my_k_center" / "seed-0"
    rows = [json.loads(line) for line in (folder / "rounds" / "001" / "queried.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row["score"] is None for row in rows)
