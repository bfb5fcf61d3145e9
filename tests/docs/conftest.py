"""What pages and notebooks share: what they register is forgotten after each test, and few programs are compiled."""

import sys

import pytest
from shapes import have_one_shape


@pytest.fixture(autouse=True)
def _is_forgotten(registries):
    yield
    for name in [name for name in sys.modules if name.startswith("star_jax_plugin_")]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _one_shape(monkeypatch):
    have_one_shape(monkeypatch)
