"""What pages and notebooks share: names that they register are forgotten after each test."""

import sys

import pytest

from star_jax import registry


@pytest.fixture(autouse=True)
def _names_are_forgotten(monkeypatch):
    for names in (registry.STRATEGIES, registry.TASKS, registry.ANNOTATORS, registry.TRACKERS):
        monkeypatch.setattr(names, "_registered", dict(names._registered))
    yield
    for name in [name for name in sys.modules if name.startswith("star_jax_plugin_")]:
        del sys.modules[name]
