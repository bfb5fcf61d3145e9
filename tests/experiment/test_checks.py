"""Settings that contradict each other, refused in a sentence before anything is read."""

import pytest

from star_jax.config import AcquisitionConfig, ExperimentConfig, LoopConfig
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError
from star_jax.experiment.checks import check_experiment


def test_a_query_scores_at_least_what_it_picks():
    loop, task = LoopConfig(labels_per_round=20), get_task("skills")
    check_experiment(ExperimentConfig(acquisition=AcquisitionConfig(score_at_most=20), loop=loop), [], task)
    said = r"^acquisition\.score_at_most is 19, and a query picks loop\.labels_per_round = 20 of what it scores; raise"
    with pytest.raises(ConfigError, match=said):
        check_experiment(ExperimentConfig(acquisition=AcquisitionConfig(score_at_most=19), loop=loop), [], task)
    with pytest.raises(ConfigError, match=r"^acquisition\.score_at_most is 0; it must be at least 1, or none$"):
        AcquisitionConfig(score_at_most=0)
