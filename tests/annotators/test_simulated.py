"""The simulated annotator errs and skips as often as it is told to, and says the same whoever asks it, and when."""

import numpy as np
import pytest
from scipy.stats import binom, chi2

from star_jax.annotators.annotator import Request
from star_jax.annotators.simulated import NAME, SimulatedAnnotator
from star_jax.config import ExperimentConfig, FormatConfig, SimulatedConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError

SIZE, CHANCE = 4000, 1e-6
"""Examples, and how probable it is that a right annotator fails one of these tests with a fresh seed."""

CLOSED = ("red", "green", "blue", "grey")


def make(settings, answers=CLOSED, labels=None, skipped=()):
    task = get_task("generic", FormatConfig(answers=answers))
    labels = labels or {f"e{n}": (answers or ("1", "2", "3"))[n % 3] for n in range(SIZE)}
    return SimulatedAnnotator(labels, skipped, task, settings)


def said(annotator, names=None):
    names = names or [f"e{n}" for n in range(SIZE)]
    return {one.id: one for one in annotator.annotate([Request(Prompt(name, "?")) for name in names])}


def is_binomial(count, rate, size=SIZE):
    least, most = binom.interval(1 - CHANCE, size, rate)
    return least <= count <= most


@pytest.mark.parametrize("answers", [CLOSED, ()])
@pytest.mark.parametrize(("error_rate", "skip_rate"), [(0.2, 0.0), (0.0, 0.3), (0.1, 0.05), (0.9, 0.5)])
def test_it_errs_and_skips_as_often_as_it_should(seed, answers, error_rate, skip_rate):
    annotator = make(SimulatedConfig(error_rate, skip_rate, seed=seed), answers)
    found = said(annotator)
    skips = sum(one.skipped for one in found.values())
    errors = sum(not one.skipped and one.response != annotator._labels[name] for name, one in found.items())
    assert is_binomial(skips, skip_rate)
    assert is_binomial(errors, (1 - skip_rate) * error_rate)
    assert {one.annotator for one in found.values()} == {NAME}


def test_wrong_answers_of_a_closed_set_are_all_as_likely(seed):
    labels = {f"e{n}": "red" for n in range(SIZE)}
    found = said(make(SimulatedConfig(1.0, seed=seed), labels=labels))
    counts = [sum(one.response == answer for one in found.values()) for answer in CLOSED]
    assert counts[0] == 0
    expected = SIZE / 3
    assert sum((count - expected) ** 2 / expected for count in counts[1:]) < chi2.ppf(1 - CHANCE, 2)


def test_wrong_free_answers_are_those_of_other_rows_as_often_as_they_are_there(seed):
    labels = {f"e{n}": "common" if n % 4 else "rare" for n in range(SIZE)} | {"x": "asked"}
    wrong = said(make(SimulatedConfig(1.0, seed=seed), (), labels))
    assert all(one.response != labels[name] for name, one in wrong.items())
    labels = {f"e{n}": ("right" if n < SIZE // 2 else "common" if n % 4 else "rare") for n in range(SIZE)}
    asked = [f"e{n}" for n in range(SIZE // 2)]
    wrong = said(make(SimulatedConfig(1.0, seed=seed), (), labels), asked)
    rare = sum(one.response == "rare" for one in wrong.values())
    assert is_binomial(rare, 0.25, len(asked))


def test_where_all_answers_are_the_same_none_is_wrong():
    assert said(make(SimulatedConfig(1.0), (), {"a": "7", "b": " 7 "}), ["a", "b"])["a"].response == "7"


def test_the_same_is_said_in_any_order_and_company(seed, rng):
    settings = SimulatedConfig(0.4, 0.2, seed=seed)
    once = said(make(settings))
    names = [str(name) for name in rng.permutation(list(once))]
    annotator = make(settings, labels=dict(sorted(make(settings)._labels.items(), reverse=True)))
    later = {}
    for part in np.array_split(names, 7):
        later |= said(annotator, [str(name) for name in part])
    assert later == once
    assert said(make(SimulatedConfig(0.4, 0.2, seed=(seed + 1) % 2**32))) != once


def test_without_noise_it_is_the_pool_itself_and_names_its_cost():
    found = said(make(SimulatedConfig(cost=0.25), skipped={"s"}), ["e1", "s", "nobody knows"])
    assert {name: one.response for name, one in found.items()} == {"e1": "green", "s": None}
    assert [one.cost for one in found.values()] == [0.25, 0.25]


def test_what_the_pool_has_not_is_said():
    sentence = make(SimulatedConfig()).instructions([Request(Prompt("x", "?"))])
    assert "1 examples that were picked have no response in the pool, x among them" in sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"error_rate": 1.5}, r"simulated.error_rate is 1.5; it must be in \[0, 1\]"),
        ({"skip_rate": -0.1}, r"simulated.skip_rate is -0.1; it must be in \[0, 1\]"),
        ({"cost": -1.0}, "simulated.cost is -1.0; it must not be negative"),
        ({"cost": float("nan")}, "simulated.cost is nan; it must be a finite number"),
        ({"seed": -1}, "simulated.seed is -1"),
    ],
)
def test_settings_that_make_no_sense(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        SimulatedConfig(**settings)


def test_a_section_for_another_annotator_is_refused():
    with pytest.raises(ConfigError, match="simulated is the section of annotator simulated, and annotator is auto"):
        ExperimentConfig(simulated=SimulatedConfig(0.1))
