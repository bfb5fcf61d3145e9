"""Runs of which every kind of batch has one shape: a program less to compile for each that there would be besides."""

import pytest

from star_jax.acquisition import pools
from star_jax.data import step_shapes


def have_one_shape(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone; several shapes are for `test_compiled_shapes` and the tests of runs."""
    for name in ("PROMPT_SHAPES", "SEQUENCE_SHAPES", "CANDIDATE_SHAPES"):
        patch.setattr(pools, name, 1)
    patch.setattr(step_shapes, "USUAL_SHAPES", 0)  # but for the one that holds any step
