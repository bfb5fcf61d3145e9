"""A model whose layers have kernels of their own is the same function, and its adapter has the same gradient."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES

from star_jax.models import kernels_apart as apart
from star_jax.models.architecture import TransformerConfig
from star_jax.models.dropout import Dropout
from star_jax.models.kernels_apart import kernels_apart
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, hidden_states
from star_jax.models.transformer import UNROLLED_LAYERS, LanguageModel
from star_jax.ops.quantization import quantize

Rows = tuple[np.ndarray, np.ndarray]
MakeModel = Callable[[TransformerConfig], LanguageModel]
MakeAdapter = Callable[..., Adapter]

DEPTH = UNROLLED_LAYERS + 2


@pytest.mark.parametrize("dropout", [None, "per_token"])
@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), ()])
@pytest.mark.parametrize("family", ["llama", "qwen", "phi"])
def test_value_and_gradient_are_the_same(
    make_model: MakeModel,
    make_adapter: MakeAdapter,
    tiny_config: TransformerConfig,
    rows: Rows,
    family: str,
    targets: tuple[str, ...],
    dropout: str | None,
) -> None:
    extra = dict(FAMILIES[family])
    if "windows" in extra:
        extra["windows"] = (extra["windows"] * DEPTH)[:DEPTH]
    config = dataclasses.replace(tiny_config, num_hidden_layers=DEPTH, **extra)
    model = make_model(config)
    names = [name for name, layer in model.params["layers"].items() if "kernel" in layer]
    chosen = [name for name in names if name in targets] or names
    adapter = make_adapter(config, targets=chosen)
    inputs = SequenceInputs(jnp.asarray(rows[0]), jnp.ones(4, jnp.int32), jnp.asarray(rows[1]))
    masks = None if dropout is None else Dropout(jax.random.split(jax.random.key(1), 4), 0.3, dropout)

    @jax.jit
    def found(model: LanguageModel, weights: dict) -> jax.Array:
        def total(weights: dict) -> tuple[jax.Array, jax.Array]:
            hidden = hidden_states(model, Adapter(weights, adapter.scale), inputs, masks, 48)
            real = jnp.arange(11) < inputs.lengths[:, None]
            return jnp.sum(jnp.where(real[..., None], jnp.sin(hidden), 0)), hidden

        return jax.grad(total, has_aux=True)(weights)

    separate = kernels_apart(model)
    assert set(separate.params["kernels"]) == set(names)
    for ours, theirs in zip(
        *(map(np.asarray, jax.tree.leaves(found(one, adapter.weights))) for one in (separate, model)), strict=True
    ):
        # Rounded otherwise, through all layers and back.
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
        assert np.abs(theirs).max() > 0.1


def test_no_kernel_is_copied_in_the_loop_or_kept_for_the_gradient(
    make_model: MakeModel, make_adapter: MakeAdapter, tiny_config: TransformerConfig, rows: Rows
) -> None:
    config = dataclasses.replace(tiny_config, num_hidden_layers=DEPTH, hidden_size=64, intermediate_size=512)
    model, adapter = make_model(config), make_adapter(config)
    inputs = SequenceInputs(jnp.asarray(rows[0]), jnp.ones(4, jnp.int32), jnp.asarray(rows[1]))

    def total(weights: dict, model: LanguageModel) -> jax.Array:
        return jnp.sum(hidden_states(model, Adapter(weights, adapter.scale), inputs, None) ** 2)

    def temporaries(model: LanguageModel) -> int:
        return jax.jit(jax.grad(total)).lower(adapter.weights, model).compile().memory_analysis().temp_size_in_bytes

    kernel = 64 * 512 * 4
    assert temporaries(kernels_apart(model)) <= temporaries(model) - kernel


@pytest.mark.parametrize("case", ["few layers", "quantised", "shared", "accelerator", "large", "many devices"])
def test_where_it_saves_nothing_the_model_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, make_model: MakeModel, tiny_config: TransformerConfig, case: str
) -> None:
    depth = UNROLLED_LAYERS if case == "few layers" else DEPTH
    model = make_model(dataclasses.replace(tiny_config, num_hidden_layers=depth))
    if case == "quantised":
        for layer in model.params["layers"].values():
            layer |= {"kernel": quantize(layer["kernel"], "int8")} if "kernel" in layer else {}
    if case == "shared":
        monkeypatch.setattr(apart, "parts_of_a_model", lambda: 2)
    if case == "accelerator":
        monkeypatch.setattr(apart, "target_device", lambda: type("Device", (), {"platform": "tpu"}))
    if case == "large":
        monkeypatch.setattr(apart, "MOST_BYTES", 1000)
    if case == "many devices":
        monkeypatch.setattr(apart, "data_mesh", lambda: type("Mesh", (), {"size": 8}))
    assert kernels_apart(model) is model


def test_a_loop_that_is_not_written_out_has_kernels_of_its_own(
    make_model: MakeModel, tiny_config: TransformerConfig
) -> None:
    model = make_model(tiny_config)
    assert kernels_apart(model) is model
    again = LanguageModel(model.decoder.clone(rematerialise=True), model.params)
    assert "kernels" in kernels_apart(again).params
