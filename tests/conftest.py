"""What all tests share: the CPU, seeds that their names give, and a tiny model of random weights."""

import gc
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import seeds
from random_models import random_adapter, random_model

from star_jax.models.architecture import TransformerConfig
from star_jax.models.dropout import Dropout
from star_jax.models.lm_head import logits, output_head
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.rotary import Rope
from star_jax.models.transformer import LanguageModel
from star_jax.registry import ANNOTATORS, STRATEGIES, TASKS, TRACKERS

# In the environment too, for the commands that tests start as processes of their own.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Whichever test comes first, a command that shows two devices by itself included.
os.environ["JAX_NUM_CPU_DEVICES"] = "1"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
# Tests compile much and compute little. Those against PyTorch, and the commands, run optimised programs.
jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs come first, so that no worker is left with a long one at the end."""
    first = {Path(__file__).parent, Path(__file__).parent / "cli"}
    items.sort(key=lambda item: item.path.parent not in first)


def pytest_addoption(parser: pytest.Parser) -> None:
    seeds.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Before the plugin of Hypothesis looks at its seed."""
    seeds.configure(config)
    # Compiled programs are kept while the tests run, for all workers and for the commands that tests start.
    if not hasattr(config, "workerinput"):
        kept = tempfile.TemporaryDirectory(prefix="star_jax-programs-", ignore_cleanup_errors=True)
        config.add_cleanup(kept.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = kept.name
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    # A shell starts jobs in the background with Ctrl-C ignored, and there would be nothing to test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


MOST_MAPPINGS = 30_000
"""Mappings of memory from which on compiled programs are forgotten: Linux allows a process 65,530 by default, a program
takes about twelve, and one more than that ends the process without a word."""


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """After a module whose programs, with those before, are many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Pinned by the test's name; `--fuzz` and `--seed` give another one."""
    return seeds.seed_of(request)


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgets at the end what a test has registered."""
    for registry in (STRATEGIES, TASKS, ANNOTATORS, TRACKERS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="session")
def tiny_config() -> TransformerConfig:
    """Grouped-query attention, untied, and heads that do not add up to the model's width."""
    return TransformerConfig(
        vocab_size=53,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        ropes=(Rope(500.0),),
        rms_norm_eps=1e-5,
        max_position_embeddings=128,
    )


@pytest.fixture
def make_model(rng: np.random.Generator) -> Callable[[TransformerConfig], LanguageModel]:
    """Makes models of fresh random weights."""
    return partial(random_model, rng)


@pytest.fixture
def tiny_model(
    make_model: Callable[[TransformerConfig], LanguageModel], tiny_config: TransformerConfig
) -> LanguageModel:
    return make_model(tiny_config)


@pytest.fixture
def make_adapter(rng: np.random.Generator) -> Callable[..., Adapter]:
    """Makes adapters whose two factors are both random."""
    return partial(random_adapter, rng)


@jax.jit
def _forward(
    model: LanguageModel, adapter: Adapter | None, tokens: jax.Array, lengths: jax.Array, dropout: Dropout | None = None
) -> jax.Array:
    hidden, _ = model.decoder.apply(with_adapter(model.params, adapter), tokens, dropout)
    return logits(hidden, output_head(model))


@pytest.fixture(scope="session")
def forward() -> Callable[..., Any]:
    """All logits `B×T×V` of (model, adapter, tokens `B×T`, lengths `B`, dropout), jitted once for all tests.

    The decoder does not ask for lengths: what is returned at padding means nothing. Arrays are of numpy, which takes
    the rest of them without a program for every shape, but for what is being differentiated or mapped.
    """

    def evaluated(*arguments: Any) -> Any:
        found = _forward(*arguments)
        return found if isinstance(found, jax.core.Tracer) else np.asarray(found)

    return evaluated


@pytest.fixture
def rows(rng: np.random.Generator, tiny_config: TransformerConfig) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded random tokens `4×11` and their lengths, one row full and one of a single token."""
    lengths = rng.permutation(np.asarray([11, 1, *rng.integers(2, 11, 2)], np.int32))
    tokens = rng.integers(0, tiny_config.vocab_size, (4, 11)).astype(np.int32)
    return np.where(np.arange(11) < lengths[:, None], tokens, 0), lengths
