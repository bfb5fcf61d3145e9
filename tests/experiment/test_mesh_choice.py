"""How many devices share a model, and what is said of it."""

import dataclasses

import jax
import numpy as np
import pytest
from random_models import random_model

from star_jax.config import LoraConfig, MeshConfig
from star_jax.errors import ConfigError
from star_jax.experiment.mesh_choice import MOST_OF_MEMORY, choose_fsdp, residents, words
from star_jax.experiment.sizes import ADAPTER_COPIES
from star_jax.models.architecture import Experts, TransformerConfig
from star_jax.models.lora import init_adapter
from star_jax.ops.quantization import quantize

SHAPE = TransformerConfig(
    vocab_size=32,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
LORA = LoraConfig(rank=4)


def held():
    return residents(SHAPE, "none", LORA)


def nobody_asks():
    raise AssertionError("what is held does not matter")


@pytest.mark.parametrize(
    ("asked", "devices", "expected"),
    [
        (MeshConfig(), 8, 1),
        (MeshConfig(fsdp=4), 8, 4),
        (MeshConfig(data=4), 8, 2),
        (MeshConfig(data=2, fsdp=4), 8, 4),
        (MeshConfig(fsdp=1), 1, 1),
    ],
)
def test_what_is_asked_for_is_taken_and_one_memory_is_not_shared(asked, devices, expected):
    assert choose_fsdp(asked, nobody_asks, devices, None) == expected


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_auto_is_the_fewest_devices_that_leave_room(fsdp):
    total = sum(one.size(fsdp) for one in held())
    assert choose_fsdp(MeshConfig(), held, 8, total / MOST_OF_MEMORY * 1.0001) == fsdp
    assert choose_fsdp(MeshConfig(), held, 8, 1) == 8  # nothing fits: what comes closest


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (MeshConfig(fsdp=3), r"mesh.fsdp is 3, and there are 8 devices; choose one of \[1, 2, 4, 8\], or auto"),
        (MeshConfig(data=16), r"mesh.data is 16, and there are 8 devices"),
        (MeshConfig(data=2, fsdp=2), r"mesh.data is 2 and mesh.fsdp 2, which are 4 devices, and there are 8"),
    ],
)
def test_a_mesh_of_other_devices_is_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        choose_fsdp(asked, nobody_asks, 8, None)


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
@pytest.mark.parametrize("experts", [None, Experts(3, 2, 64)])
def test_what_is_held_is_what_a_model_holds(kind, experts):
    shape = dataclasses.replace(SHAPE, experts=experts)
    model = random_model(np.random.default_rng(0), shape)
    adapter = init_adapter(jax.random.key(0), model.params, LORA)
    for layer in model.params["layers"].values():
        for name in layer.keys() & {"kernel", "gate_up", "down"}:
            layer[name] = quantize(layer[name], kind)
    layers, tables, trained = (one.size(1) for one in residents(shape, kind, LORA))
    sizes = {name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for name, tree in model.params.items()}
    assert layers == sizes.pop("layers")
    assert tables == sum(sizes.values())
    assert trained == ADAPTER_COPIES * sum(leaf.nbytes for leaf in jax.tree.leaves(adapter.weights))


def test_the_choice_its_reason_and_a_table_are_said():
    lines = words(4, 8, held(), 3e9)
    assert lines[0].startswith("mesh: data 2 x fsdp 4; one device would hold 0.0 GB throughout, and 2.1 of 3.0 GB are")
    assert words(4, 8, held(), None)[0] == "mesh: data 2 x fsdp 4; as asked"
    cells = [line.rsplit(maxsplit=2) for line in lines[2:]]
    assert [float(whole) for _, whole, _ in cells] == pytest.approx(
        [one.size(1) / 1e9 for one in held()] + [sum(one.size(1) for one in held()) / 1e9], abs=5e-4
    )
    assert lines[-1].split()[:3] == ["all", "of", "it"]
