"""A run stops when its rule holds, and not before that can be told."""

import numpy as np
import pytest

from star_jax.config import LoopConfig
from star_jax.config.stop_rule import StopRule, stop_rule
from star_jax.errors import ConfigError
from star_jax.experiment.stopping import stop_reason


def rows(accuracies, step=50):
    return [{"round": n, "labelled": step * (n + 1), "accuracy": a} for n, a in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("accuracy >= 0.8", ("accuracy", 0.8)),
        (" validation_accuracy>=.75 ", ("validation_accuracy", 0.75)),
        ("forecast gain < 0.01", ("forecast gain", 0.01)),
        ("forecast  gain<1e-3", ("forecast gain", 0.001)),
    ],
)
def test_rules_are_read(text, rule):
    assert stop_rule(text) == rule


@pytest.mark.parametrize("text", ["", "accuracy > 0.8", "accuracy >= 80", "ece >= 0.1", "accuracy >= nan", "gain < x"])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(ConfigError, match=r"loop.stop_when is .*; write accuracy >= 0.8"):
        LoopConfig(stop_when=text)


def test_an_accuracy_that_is_reached_stops():
    rule = StopRule("accuracy", 0.6)
    assert stop_reason(rule, rows([0.7, 0.5]), 50) is None
    assert stop_reason(rule, rows([0.5, 0.6]), 50) == "accuracy is 0.6000, at least 0.6, after 2 rounds"
    assert stop_reason(None, rows([0.9]), 50) is None
    assert stop_reason(rule, [], 50) is None
    # Without held-out examples there is no accuracy on them.
    assert stop_reason(StopRule("validation_accuracy", 0.1), rows([0.9]), 50) is None


def test_a_curve_that_has_levelled_off_stops_and_one_that_rises_does_not():
    rule = StopRule("forecast gain", 0.005)  # the second curve's next 50 labels bring 0.0063
    labels = 50 * np.arange(1, 11)
    flat, rising = 0.8 - 40 * labels**-2.0, 0.9 - 3 * labels**-0.5
    assert "expected to bring at most" in stop_reason(rule, rows(flat.tolist()), 50)
    assert stop_reason(rule, rows(rising.tolist()), 50) is None


def test_a_curve_that_cannot_be_told_yet_does_not_stop():
    rule = StopRule("forecast gain", 0.01)
    assert stop_reason(rule, rows([0.5, 0.5, 0.5]), 50) is None  # three points are a law's own
    noisy = [0.5, 0.62, 0.48, 0.61, 0.5]
    assert stop_reason(rule, rows(noisy), 50, tests=20) is None
