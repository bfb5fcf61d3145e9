"""Programs that run a model in bfloat16 compile for a TPU, which need not be there: its compiler is in libtpu.

Belongs here: what a CPU compiles and another machine may refuse. `make accelerators` installs the wheel.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import mesh_child
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from random_models import random_adapter, random_model

import star_jax
from star_jax.acquisition.long_answers import LONG_ANSWER
from star_jax.data.batching import Shape
from star_jax.inference import continuous
from star_jax.inference.mc_dropout import Sampling
from star_jax.models.architecture import TransformerConfig
from star_jax.ops.platform import programs_for
from star_jax.parallel.mesh import data_mesh, mesh_of
from star_jax.planning.compiled import Compiler, compiler_for, nothing_kept_of
from star_jax.planning.machines import machine
from star_jax.training import trainer

pytestmark = pytest.mark.accelerators

SHAPE = {**mesh_child.SHAPE, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
"""Widths that kernels of accelerators take as they are."""

LEAST = 20
"""Programs; fewer would mean that some were not met."""

Jitted = type(jax.jit(lambda: None))


class Noted:
    """A jitted function that notes the shapes it is called with, inside of no other program."""

    def __init__(self, function: Any, calls: dict[str, tuple[Any, Any, Any]]) -> None:
        self.function, self.calls = function, calls

    def __call__(self, *args: Any, **options: Any) -> Any:
        given = jax.tree.map(_shape, (args, options))
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, options))):
            self.calls.setdefault(f"{self.function.__name__} {given}", (self.function, *given))
        return self.function(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, Any, Any]]:
    """The jitted functions of the package that have been called, and with what."""
    for found in pkgutil.walk_packages(star_jax.__path__, "star_jax."):
        if found.name.startswith(
            ("star_jax.acquisition", "star_jax.inference", "star_jax.models", "star_jax.training")
        ):
            importlib.import_module(found.name)
    calls: dict[str, tuple[Any, Any, Any]] = {}
    wrapped: dict[int, Noted] = {}
    for name, module in list(sys.modules.items()):
        for place, value in list(vars(module).items()) if name.startswith(("star_jax.", "mesh_child")) else ():
            if isinstance(value, Jitted):
                monkeypatch.setattr(module, place, wrapped.setdefault(id(value), Noted(value, calls)))
    # As an accelerator has it.
    monkeypatch.setattr(continuous, "unstacked_on_a_cpu", lambda *model: None)
    monkeypatch.setattr(trainer, "kernels_apart", lambda model: model)
    monkeypatch.setattr(mesh_child, "TRAINING", replace(mesh_child.TRAINING, batch_size=3))
    monkeypatch.setattr(mesh_child, "TRAINED", mesh_child.TRAINED[:6])
    return calls


def run_everything(patch: Callable[..., None]) -> None:
    """All that is done with a model, on this machine."""
    config = TransformerConfig(**{**SHAPE, "dtype": "bfloat16"})
    rng = mesh_child.np.random.default_rng(5)
    model, adapter = random_model(rng, config), random_adapter(rng, config, rank=4, scale=0.5)
    pools = ("proposed", "closed", "written")
    for mode in ("shared", "per_token"):
        patch(mesh_child, "SAMPLING", Sampling(2, 0.2, mode))
        list(mesh_child.scores(model, adapter, [*pools, *(f"{pool} sampled" for pool in pools)]))
    list(mesh_child.vectors(model, adapter))
    for rematerialise in (False, True):
        patch(mesh_child, "TRAINING", replace(mesh_child.TRAINING, rematerialise=rematerialise))
        list(mesh_child.training(model))
    prompts = [row.tokens[: row.prompt_length] for row in mesh_child.PROMPTS]
    rows = (Shape(3, LONG_ANSWER + 16, 3 * LONG_ANSWER),)
    long = mesh_child.GeneratedPool(prompts, (Shape(4, 8, 32),), LONG_ANSWER, (1, 2, 3), rows)
    mesh_child.score_pool(model, adapter, long, key=jax.random.key(0))


def test_all_that_is_done_with_a_model_compiles(
    noted: dict[str, tuple[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the command sets it.
    with jax.default_matmul_precision("highest"):
        run_everything(monkeypatch.setattr)
        compiler = compiler_for(machine("v5e-1", pytest.fail))
        assert isinstance(compiler, Compiler), compiler
        refused = {}
        device = compiler.devices[0]
        with programs_for(device), mesh_of(compiler.devices, 1), nothing_kept_of(device):
            place = NamedSharding(data_mesh(), PartitionSpec())
            for function, *given in noted.values():
                args, options = jax.tree.map(
                    lambda leaf: leaf.update(sharding=place) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, given
                )
                try:
                    function.lower(*args, **options).compile()
                except Exception as error:  # one by one, and all are told
                    refused[function.__name__] = str(error)
    assert not refused
    assert len(noted) >= LEAST
