"""Which axis of each parameter is split, for every family and kind of weights."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from random_models import FAMILIES

from star_jax.config import LoraConfig, TrainingConfig
from star_jax.models.architecture import Experts, TransformerConfig
from star_jax.models.lora import init_adapter
from star_jax.models.transformer import Decoder
from star_jax.ops.quantization import quantize
from star_jax.parallel.placement import bytes_on_a_device, names_of, spec_of, specs_of, split_axis
from star_jax.training.optimizers import direction

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def shapes_of(config, kind="none"):
    """Shapes of a decoder's parameters, its kernels quantised."""
    params = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    for layer in params["layers"].values():
        for name in ("kernel", "gate_up", "down"):
            if name in layer:
                layer[name] = jax.eval_shape(lambda kernel: quantize(kernel, kind), layer[name])
    return params


def split_names(tree, parts):
    """Names of leaves -> axis that is split; those that are whole are left out."""
    leaves = {names_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    found = {names: split_axis(names, shape, parts) for names, shape in leaves.items()}
    return {names: axis for names, axis in found.items() if axis is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_all_projections_are_split_along_their_output_and_nothing_else(family, kind):
    params = shapes_of(TransformerConfig(**SHAPE, **FAMILIES[family]), kind)
    found = split_names(params, 4)
    kernels = {names_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params) if "kernel" in names_of(path)}
    assert found == dict.fromkeys(kernels, -1)


def test_experts_are_split_and_their_router_is_not():
    params = shapes_of(TransformerConfig(**SHAPE, experts=Experts(3, 2, 16)), "int8")
    experts = {name for name in split_names(params, 4) if "experts" in name}
    assert experts == {
        ("layers", "experts", name, part) for name in ("gate_up", "down") for part in ("values", "scale")
    }


def test_an_adapter_and_its_moments_are_split_along_what_is_not_the_rank():
    params = shapes_of(TransformerConfig(**SHAPE))
    adapter = jax.eval_shape(lambda key: init_adapter(key, params, LoraConfig(rank=4)), jax.random.key(0))
    moments = jax.eval_shape(direction(TrainingConfig()).init, adapter.weights)
    for tree, copies in ((adapter, 1), (moments, 2)):
        found = split_names(tree, 4)
        assert {(names[-1], axis) for names, axis in found.items()} == {("a", -2), ("b", -1)}
        assert len(found) == copies * 2 * 7


def test_what_does_not_divide_is_whole():
    names = ("layers", "q_proj", "kernel")
    assert split_axis(names, (2, 64, 12), 4) == -1
    assert split_axis(names, (2, 64, 12), 8) is None
    assert split_axis(names, (2, 64, 12), 1) is None
    assert split_axis(("lm_head",), (64, 64), 4) is None
    assert spec_of(("layers", "o_proj", "a"), (2, 64, 3), 4) == PartitionSpec(None, "fsdp", None)
    assert spec_of(("norm", "scale"), (64,), 4) == PartitionSpec()


def test_bytes_are_those_of_the_parts():
    params = shapes_of(TransformerConfig(**SHAPE))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    kernels = sum(
        leaf.size * 4 for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "kernel" in names_of(path)
    )
    assert bytes_on_a_device(params, 1) == whole
    assert bytes_on_a_device(params, 4) == whole - kernels + kernels // 4
    assert jax.tree.structure(specs_of(params, 4)) == jax.tree.structure(params)
