"""Quantised kernels against loops over entries, and NF4's levels against the construction of its paper."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PROJECTIONS
from scipy import stats

from star_jax.checkpoints.huggingface import load_model, save_model
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter, Factors
from star_jax.models.transformer import LanguageModel
from star_jax.ops.quantization import (
    BLOCK,
    NF4_LEVELS,
    Int8Kernel,
    NF4Kernel,
    matmul,
    projection_bytes,
    quantize,
)

KINDS = ("int8", "nf4")
dequantized_to = jax.jit(lambda kernel, dtype: kernel.dequantize(dtype), static_argnums=1)
Rows = tuple[np.ndarray, np.ndarray]
MakeModel = Callable[[TransformerConfig], LanguageModel]
Forward = Callable[..., jax.Array]


def test_levels_are_quantiles_of_a_normal() -> None:
    """Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E: eight quantiles above 0, seven below, and 0.

    The outermost is the mean of the two for 16 and 15 levels, 1 - (1/32 + 1/30) / 2, and all are scaled to [-1, 1].
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above = stats.norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    levels = np.sort([*below, 0.0, *above]) / above.max()
    np.testing.assert_allclose(NF4_LEVELS, levels, atol=1e-6)


def random_kernel(rng: np.random.Generator, width: int, features: int = 5) -> np.ndarray:
    """Columns of different sizes, one of them zero, and a block of zeros."""
    kernel = rng.normal(size=(width, features)) * 10.0 ** rng.integers(-3, 2, features)
    kernel[:, -1] = 0
    kernel[:BLOCK, 0] = 0
    return np.float32(kernel)


def columns(kernel: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Output, first input and entries of each block of a kernel `I×O`."""
    for feature in range(kernel.shape[1]):
        for start in range(0, len(kernel), BLOCK):
            yield feature, start, kernel[start : start + BLOCK, feature].astype(np.float64)


def nf4_by_loops(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes and values `I×O`, and where a code is no closer to its entry than a neighbour of it."""
    codes, values = np.zeros(kernel.shape, int), np.zeros(kernel.shape)
    tied = np.zeros(kernel.shape, bool)
    for feature, start, block in columns(kernel):
        largest = max(abs(entry) for entry in block)
        for offset, entry in enumerate(block):
            distances = [abs(entry - level * largest) for level in NF4_LEVELS]
            nearest = 7 if largest == 0 else int(np.argmin(distances))
            place = (start + offset, feature)
            codes[place], values[place] = nearest, NF4_LEVELS[nearest] * largest
            tied[place] = largest > 0 and np.subtract(*np.sort(distances)[1::-1]) < 1e-5 * largest
    return codes, values, tied


@pytest.mark.parametrize("width", [64, 192, 1, 24, 65, 130])
def test_nf4_takes_the_nearest_level_of_each_block(rng: np.random.Generator, width: int) -> None:
    kernel = random_kernel(rng, width)
    made = quantize(jnp.asarray(kernel), "nf4")
    assert isinstance(made, NF4Kernel)
    assert made.shape == kernel.shape
    assert (made.codes.dtype, made.scale.dtype) == (jnp.uint8, jnp.float32)
    assert made.scale.shape == (-(-width // BLOCK), 5)
    codes, values, tied = nf4_by_loops(kernel)
    pairs = np.asarray(made.codes)
    got = np.stack([pairs // 16, pairs % 16], axis=1).reshape(-1, 5)
    assert tied.mean() < 0.05
    np.testing.assert_array_equal(got[:width][~tied], codes[~tied])
    assert (got[width:] == 7).all()  # what fills the last block up is 0
    widened = np.asarray(dequantized_to(made, jnp.float32))
    assert widened.dtype == jnp.float32
    np.testing.assert_allclose(widened[~tied], values[~tied], rtol=1e-6)
    np.testing.assert_array_equal(widened[kernel == 0], 0)
    scale = np.asarray(made.scale)
    for feature, start, block in columns(kernel):
        assert scale[start // BLOCK, feature] == np.abs(block).max()


@pytest.mark.parametrize("width", [64, 130, 1])
def test_int8_rounds_to_127ths_of_the_largest(rng: np.random.Generator, width: int) -> None:
    kernel = random_kernel(rng, width)
    made = quantize(jnp.asarray(kernel), "int8")
    assert isinstance(made, Int8Kernel)
    assert made.shape == kernel.shape
    assert (made.values.dtype, made.scale.dtype) == (jnp.int8, jnp.float32)
    values, scale, widened = map(np.asarray, (made.values, made.scale, dequantized_to(made, jnp.float32)))
    for feature in range(kernel.shape[1]):
        step = max(abs(float(entry)) for entry in kernel[:, feature]) / 127
        np.testing.assert_allclose(scale[feature], step, rtol=1e-6)
        for place in range(width):
            exact = float(kernel[place, feature]) / step if step else 0.0
            if abs(exact % 1 - 0.5) > 1e-4:
                assert values[place, feature] == round(exact)
                np.testing.assert_allclose(widened[place, feature], round(exact) * step, rtol=1e-6, atol=1e-12)
    assert np.abs(values).max(axis=0).tolist() == [127 if column.any() else 0 for column in kernel.T]


def test_none_returns_the_kernel_itself() -> None:
    kernel = jnp.ones((3, 2))
    assert quantize(kernel, "none") is kernel


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_kernels_are_quantised_one_by_one(rng: np.random.Generator, kind: str) -> None:
    stack = np.stack([random_kernel(rng, 100) for _ in range(3)])
    whole, parts = quantize(stack, kind), [quantize(kernel, kind) for kernel in stack]
    assert whole.shape == stack.shape
    chex.assert_trees_all_equal(whole, jax.tree.map(lambda *leaves: np.stack(leaves), *parts))
    np.testing.assert_array_equal(
        np.asarray(dequantized_to(whole, jnp.float32))[1], dequantized_to(parts[1], jnp.float32)
    )


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.55), ("nf4", 0.30)])
@pytest.mark.parametrize("width", [256, 1024])
def test_kernels_are_small(kind: str, most: float, width: int) -> None:
    shapes = {"q_proj": (2, width, width), "down_proj": (2, 3 * width, width)}

    def held(kind: str) -> int:
        kernels = {name: quantize(jnp.ones(shape, jnp.bfloat16), kind) for name, shape in shapes.items()}
        layers = {name: {"kernel": kernel, "bias": jnp.ones((2, width))} for name, kernel in kernels.items()}
        return projection_bytes({"layers": layers | {"pre_mlp_norm": {"scale": jnp.ones((2, width))}}})

    assert held("none") == 2 * 2 * 4 * width**2
    assert held(kind) <= most * held("none")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_and_its_gradient_are_those_of_the_widened_kernel(
    rng: np.random.Generator, kind: str, dtype: jnp.dtype
) -> None:
    kernel = quantize(jnp.asarray(random_kernel(rng, 100)), kind)
    x, direction = (jnp.asarray(rng.normal(size=(2, 3, width)), dtype) for width in (100, 5))

    def loss(x: jax.Array, kernel: jax.Array | Int8Kernel | NF4Kernel) -> jax.Array:
        product = matmul(x, kernel)
        assert product.dtype == dtype
        return jnp.sum((product * direction).astype(jnp.float32))

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    got, want = value_and_grad(x, kernel), value_and_grad(x, dequantized_to(kernel, dtype))
    chex.assert_trees_all_close(got, want, rtol=1e-5)
    assert np.abs(want[1]).max() > 0


def quantised(model: LanguageModel, kind: str) -> LanguageModel:
    layers = {
        name: layer | ({"kernel": quantize(layer["kernel"], kind)} if "kernel" in layer else {})
        for name, layer in model.params["layers"].items()
    }
    return model.replace(params={**model.params, "layers": layers})


def test_a_quantised_model_is_close_to_the_full_one(tiny_model: LanguageModel, forward: Forward, rows: Rows) -> None:
    real = np.arange(rows[0].shape[1]) < rows[1][:, None]
    full = np.asarray(forward(tiny_model, None, *rows))[real]
    errors = {}
    for kind in KINDS:
        model = quantised(tiny_model, kind)
        got = np.asarray(forward(model, None, *rows))[real]
        assert np.isfinite(got).all()
        errors[kind] = np.sqrt(np.mean((got - full) ** 2)) / full.std()
        layers = model.params["layers"]
        widened = {name: {"kernel": dequantized_to(layers[name]["kernel"], jnp.float32)} for name in PROJECTIONS}
        rounded = tiny_model.replace(params={**tiny_model.params, "layers": layers | widened})
        np.testing.assert_allclose(got, np.asarray(forward(rounded, None, *rows))[real], atol=1e-4)
    # A step of int8 is a hundredth of a column's largest entry, one of NF4 a tenth.
    assert 1e-4 < errors["int8"] < 0.05
    assert errors["int8"] < errors["nf4"] < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_top_has_a_gradient(
    tiny_model: LanguageModel, make_adapter: Callable[..., Adapter], forward: Forward, rows: Rows, kind: str
) -> None:
    model, adapter = quantised(tiny_model, kind), make_adapter(tiny_model.config)

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(weights: Factors) -> jax.Array:
        return jnp.mean(jnp.square(forward(model, Adapter(weights, adapter.scale), *rows)))

    weights = jax.tree.map(np.asarray, adapter.weights)
    value, gradient = jax.tree.map(np.asarray, value_and_grad(weights))
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max(axis=(1, 2)).min() > 0
    norm = sum(float(np.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    step = 0.002 * float(value) / norm
    there, back = (
        value_and_grad(jax.tree.map(lambda leaf, slope, by=by: leaf + np.float32(by) * slope, weights, gradient))[0]
        for by in (step, -step)
    )
    # To both sides, so that the curvature, large for some draws of the weights, cancels.
    assert float(there - back) == pytest.approx(2 * step * norm, rel=0.2)


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "float32"), ("nf4", "bfloat16")])
def test_loading_quantises_what_it_loads(
    make_model: MakeModel, tiny_config: TransformerConfig, tmp_path: Path, kind: str, dtype: str
) -> None:
    model = make_model(dataclasses.replace(tiny_config, dtype=dtype))
    save_model(model, tmp_path)
    loaded = load_model(str(tmp_path), dtype, quantization=kind)
    assert loaded.config == model.config
    chex.assert_trees_all_equal(loaded.params, quantised(model, kind).params)
