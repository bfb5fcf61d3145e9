"""Every task that ships has its rule, and it says what the task's parser does."""

from typing import get_args

import pytest

from star_jax.config import ExperimentConfig, Match
from star_jax.registry import TASKS
from star_jax.report.rules import MATCHES, RULES, rule_of


def test_every_task_and_every_match_has_a_rule():
    assert set(RULES) | {"generic"} == set(TASKS.names())
    assert set(MATCHES) == set(get_args(Match))


@pytest.mark.parametrize("match", MATCHES)
def test_the_rule_of_a_format_is_that_of_its_match(match):
    assert rule_of({"data": {"task": "generic"}, "format": {"match": match}}) == MATCHES[match]


def test_a_task_of_a_plug_in_and_a_folder_without_configuration_have_one():
    assert "parse of the task capitals" in rule_of({"data": {"task": "capitals"}})
    assert rule_of({}) == RULES[ExperimentConfig().data.task]
