"""Norms and gated activations against numpy in float64, and what their gradients keep."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from star_jax.ops.pointwise import ACTIVATIONS, RMSNorm, gated


def norm(x: np.ndarray, scale: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


GATES = {
    "silu": lambda x: x * special.expit(x),
    "gelu": lambda x: x * special.ndtr(x),
    "gelu_pytorch_tanh": lambda x: x * special.expit(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_gate_is_its_formula_rounded_once(rng: np.random.Generator, name: str, dtype: str) -> None:
    gate, up = (jnp.asarray(rng.normal(size=(3, 200)), dtype) for _ in range(2))
    got = jax.jit(partial(gated, name))(gate, up)
    assert got.dtype == dtype
    want = GATES[name](np.asarray(gate, np.float64)) * np.asarray(up, np.float64)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=1e-4 if dtype == "float32" else 2**-8, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_gradient_of_a_gate_keeps_what_goes_in(rng: np.random.Generator, name: str) -> None:
    """In its own type. The gradient is that of the formula, by finite differences in float64."""
    gate, up, weight = (jnp.asarray(rng.normal(size=(3, 20)), jnp.bfloat16) for _ in range(3))
    _, pull = jax.vjp(partial(gated, name), gate, up)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.ndim]
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == 2 * [((3, 20), jnp.bfloat16)]
    wide = [np.asarray(part, np.float64) for part in (gate, up, weight)]
    bend = (GATES[name](wide[0] + 1e-5) - GATES[name](wide[0] - 1e-5)) / 2e-5
    want = [bend * wide[1] * wide[2], GATES[name](wide[0]) * wide[2]]
    for found, exact in zip(pull(weight), want, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_is_the_formula(rng: np.random.Generator, offset: float) -> None:
    x, scale, epsilon = rng.normal(size=(3, 4, 10)), rng.normal(size=10), 0.01
    layer = RMSNorm(epsilon, jnp.float32, offset)
    got = layer.apply({"params": {"scale": jnp.asarray(scale)}}, jnp.asarray(x))
    np.testing.assert_allclose(got, norm(x, scale + offset, epsilon), rtol=1e-5, atol=1e-5)
    fresh = layer.init(jax.random.key(0), jnp.asarray(x))
    np.testing.assert_allclose(layer.apply(fresh, jnp.asarray(x)), norm(x, np.ones(10), epsilon), rtol=1e-5, atol=1e-5)


def test_rms_norm_of_bfloat16_is_taken_in_float32(rng: np.random.Generator) -> None:
    """A mean of 4096 squares summed in bfloat16 would stop growing at a few hundred."""
    x = jnp.asarray(rng.normal(size=(2, 4096)), jnp.bfloat16)
    got = RMSNorm(1e-6, jnp.bfloat16).apply({"params": {"scale": jnp.ones(4096, jnp.bfloat16)}}, x)
    assert got.dtype == jnp.bfloat16
    want = norm(np.asarray(x, np.float64), np.ones(4096), 1e-6)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)


def test_the_gradient_of_a_norm_keeps_what_goes_in(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=(3, 20)), jnp.bfloat16)
    layer = RMSNorm(1e-6, jnp.bfloat16)
    _, pull = jax.vjp(lambda x: layer.apply({"params": {"scale": jnp.ones(20, jnp.bfloat16)}}, x), x)
    kept = [leaf for leaf in jax.tree.leaves(pull) if leaf.size >= x.size]
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((3, 20), jnp.bfloat16)]
