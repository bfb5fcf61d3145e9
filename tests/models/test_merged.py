"""Models that hold their adapter against the same decoder and adapter side by side."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES, PROJECTIONS

from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter
from star_jax.models.merged import FUSED, merge_adapter
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.ops.quantization import quantize

Rows = tuple[np.ndarray, np.ndarray]
Forward = Callable[..., jax.Array]
MakeModel = Callable[[TransformerConfig], LanguageModel]
MakeAdapter = Callable[..., Adapter]

WHOLE = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def real(rows: Rows) -> np.ndarray:
    return np.arange(rows[0].shape[1]) < rows[1][:, None]


@pytest.mark.parametrize("adapted", ["no adapter", "every projection", "some projections of one layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_the_same(
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tiny_config: TransformerConfig,
    forward: Forward,
    rows: Rows,
    family: str,
    adapted: str,
) -> None:
    model = make_model(dataclasses.replace(tiny_config, **FAMILIES[family]))
    adapter = None if adapted == "no adapter" else make_adapter(model.config)
    if adapted.startswith("some"):
        # Of two projections with the same input, one has an adapter; and one layer's is switched off by its scale.
        some = [name for name in ("qkv_proj", "k_proj", "up_proj", "down_proj") if name in model.params["layers"]]
        adapter = make_adapter(model.config, targets=some)
        scale = {name: {"scale": jnp.asarray([0.0, 0.8])} for name in some}
        adapter = adapter._replace(scale={"layers": scale})
    whole, rest = merge_adapter(model, adapter)
    assert rest is None
    kernels = {name for name, layer in whole.params["layers"].items() if "kernel" in layer}
    biased = {name for name, layer in whole.params["layers"].items() if "bias" in layer}
    assert kernels == WHOLE
    assert whole.config.architecture.fused
    assert biased == set(whole.config.architecture.biases)
    got, want = forward(whole, None, *rows), forward(model, adapter, *rows)
    np.testing.assert_allclose(got[real(rows)], want[real(rows)], atol=1e-4)
    if adapter is not None:
        assert np.abs(got - forward(model, None, *rows))[real(rows)].max() > 0.1


def test_every_projection_stands_where_it_is_read(
    make_model: MakeModel, make_adapter: MakeAdapter, tiny_config: TransformerConfig
) -> None:
    """Kernels and biases, by their own names; a projection without a bias has 0 beside one that has."""
    model = make_model(dataclasses.replace(tiny_config, **FAMILIES["qwen"]))
    adapter, layers = make_adapter(model.config), model.params["layers"]
    got = merge_adapter(model, adapter)[0].params["layers"]
    for name in PROJECTIONS:
        whole = next((whole for whole, names in FUSED.items() if name in names), name)
        before = FUSED[whole][: FUSED[whole].index(name)] if whole != name else ()
        start = sum(layers[other]["kernel"].shape[-1] for other in before)
        here = slice(start, start + layers[name]["kernel"].shape[-1])
        factors, scale = adapter.weights["layers"][name], adapter.scale["layers"][name]["scale"]
        for layer in range(tiny_config.num_hidden_layers):
            a, b = (np.asarray(factors[factor][layer], np.float64) for factor in "ab")
            want = np.asarray(layers[name]["kernel"][layer]) + float(scale[layer]) * a @ b
            np.testing.assert_allclose(got[whole]["kernel"][layer][:, here], want, rtol=1e-5, atol=1e-5)
        if "bias" in got[whole]:
            np.testing.assert_array_equal(got[whole]["bias"][:, here], layers[name].get("bias", 0))
    assert {name for name, layer in got.items() if "bias" in layer} == {"qkv_proj", "gate_up_proj"}


def test_what_is_no_projection_stays_and_so_does_the_model(
    tiny_model: LanguageModel, make_adapter: MakeAdapter
) -> None:
    before = jax.tree.map(np.array, tiny_model.params)
    whole, _ = merge_adapter(tiny_model, make_adapter(tiny_model.config))
    jax.tree.map(np.testing.assert_array_equal, tiny_model.params, before)
    for name in ("pre_attention_norm", "pre_mlp_norm"):
        np.testing.assert_array_equal(whole.params["layers"][name]["scale"], before["layers"][name]["scale"])
    for part in ("embed_tokens", "norm", "lm_head"):
        jax.tree.map(np.testing.assert_array_equal, whole.params[part], before[part])
    want = dataclasses.replace(whole.config, architecture=tiny_model.config.architecture)
    assert want == tiny_model.config


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "nf4", "one of them quantised"])
def test_fewer_bits_are_left_as_they_are(tiny_model: LanguageModel, make_adapter: MakeAdapter, kind: str) -> None:
    """A small change of a weight would be lost in them."""
    adapter, params = make_adapter(tiny_model.config), tiny_model.params
    if kind == "bfloat16":
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        model = LanguageModel(Decoder(dataclasses.replace(tiny_model.config, dtype=kind)), params)
    else:
        some, bits = (PROJECTIONS, kind) if kind in ("int8", "nf4") else (("up_proj",), "int8")
        small = {name: {"kernel": quantize(params["layers"][name]["kernel"], bits)} for name in some}
        model = tiny_model.replace(params={**params, "layers": params["layers"] | small})
    whole, rest = merge_adapter(model, adapter)
    assert whole is model
    assert rest is adapter
    assert merge_adapter(model, None) == (model, None)


def test_what_is_no_projection_is_not_copied(
    make_model: MakeModel, make_adapter: MakeAdapter, tiny_config: TransformerConfig
) -> None:
    model = make_model(tiny_config)
    merged, _ = merge_adapter(model, make_adapter(model.config))
    rest = {name: tree for name, tree in model.params.items() if name != "layers"}
    assert len(rest) >= 2
    for name, tree in rest.items():
        assert all(one is other for one, other in zip(*map(jax.tree.leaves, (merged.params[name], tree)), strict=True))
    norms = {name: layer for name, layer in model.params["layers"].items() if "kernel" not in layer}
    assert norms
    assert all(merged.params["layers"][name] is layer for name, layer in norms.items())
