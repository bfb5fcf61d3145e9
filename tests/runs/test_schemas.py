"""What the files of a run may hold."""

import pytest

from star_jax.config import ExperimentConfig
from star_jax.documents import UnreadableError
from star_jax.runs.files import plain
from star_jax.runs.schemas import check_settings


def test_every_setting_may_be_what_it_is_by_default():
    check_settings(plain(ExperimentConfig().to_dict()))


@pytest.mark.parametrize(
    ("section", "name", "value", "fits"),
    [
        ("mesh", "data", "auto", True),
        ("mesh", "data", 2, True),
        ("mesh", "data", None, False),
        ("mesh", "data", 1.5, False),
        ("acquisition", "target_file", None, True),
        ("acquisition", "target_file", 3, False),
        ("acquisition", "score_at_most", "many", False),
        ("scoring", "temperature", 1, True),
        ("scoring", "posterior", None, False),
    ],
)
def test_a_setting_of_several_types_may_be_any_of_them_and_nothing_else(section, name, value, fits):
    settings = plain(ExperimentConfig().to_dict())
    settings[section][name] = value
    if fits:
        check_settings(settings)
    else:
        with pytest.raises(UnreadableError, match=name):
            check_settings(settings)
