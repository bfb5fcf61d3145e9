"""What pages and notebooks share: what they register is forgotten after each test, and few programs are compiled."""

import sys

import pytest

from star_jax.acquisition import pools
from star_jax.training import trainer


@pytest.fixture(autouse=True)
def _is_forgotten(registries):
    yield
    for name in [name for name in sys.modules if name.startswith("star_jax_plugin_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _one_shape(monkeypatch):
    """Of each kind of batch; several are for the tests of runs."""
    for name in ("PROMPT_SHAPES", "SEQUENCE_SHAPES", "CANDIDATE_SHAPES"):
        monkeypatch.setattr(pools, name, 1)
    monkeypatch.setattr(trainer, "STEP_SHAPES", 1)
