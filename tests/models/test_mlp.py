"""Experts, each over its own tokens, against a loop over tokens."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.architecture import Experts, TransformerConfig
from star_jax.models.mlp import ExpertMLP, grouped
from star_jax.ops.quantization import quantize
from star_jax.parallel.parts import Part
from star_jax.parallel.placement import FSDP

WIDTH, INNER = 6, 4


def make(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    shapes = {"router": (WIDTH, count), "gate_up": (count, WIDTH, 2 * INNER), "down": (count, INNER, WIDTH)}
    return {name: np.float32(rng.normal(size=shape) / 2) for name, shape in shapes.items()}


def config(count: int, per_token: int) -> TransformerConfig:
    return TransformerConfig(9, WIDTH, 8, 1, 1, 1, 6, experts=Experts(count, per_token, INNER))


def run(count: int, per_token: int, params: dict[str, Any], x: np.ndarray) -> jax.Array:
    """The layer as one program; operation by operation, it would be dozens for every shape."""
    return jax.jit(ExpertMLP(config(count, per_token)).apply)({"params": params}, x)


def by_hand(params: dict[str, np.ndarray], x: np.ndarray, per_token: int) -> np.ndarray:
    out = np.zeros(x.shape)
    wide = {name: part.astype(np.float64) for name, part in params.items()}
    for place in np.ndindex(*x.shape[:-1]):
        token = x[place].astype(np.float64)
        chances = np.exp(token @ wide["router"])
        best = np.argsort(-chances)[:per_token]
        for number in best:
            gate, up = np.split(token @ wide["gate_up"][number], 2)
            out[place] += (
                chances[number] / chances[best].sum() * (gate / (1 + np.exp(-gate)) * up) @ wide["down"][number]
            )
    return out


@pytest.mark.parametrize(("count", "per_token"), [(1, 1), (3, 1), (5, 2), (40, 8), (4, 4)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 150)])
def test_tokens_go_through_their_experts(
    rng: np.random.Generator, count: int, per_token: int, shape: tuple[int, int]
) -> None:
    params, x = make(rng, count), np.float32(rng.normal(size=(*shape, WIDTH)))
    got = run(count, per_token, params, x)
    np.testing.assert_allclose(got, by_hand(params, x, per_token), atol=2e-5)


@pytest.mark.parametrize("chosen", ["all the same", "none of some"])
def test_experts_that_nobody_or_everybody_chooses(rng: np.random.Generator, chosen: str) -> None:
    """Rows of the router for which every token has the same one first, or never one of the last."""
    params, x = make(rng, 6), np.abs(np.float32(rng.normal(size=(2, 70, WIDTH))))
    params["router"] = np.zeros((WIDTH, 6), np.float32)
    params["router"][:, : 1 if chosen == "all the same" else 3] = rng.uniform(1, 2, (WIDTH, 1))
    params["router"][0] += np.arange(6) * 1e-3
    got = run(6, 2, params, x)
    np.testing.assert_allclose(got, by_hand(params, x, 2), atol=2e-5)


def test_a_token_does_not_depend_on_those_beside_it(rng: np.random.Generator) -> None:
    params, x = make(rng, 5), np.float32(rng.normal(size=(4, 33, WIDTH)))
    whole = run(5, 2, params, x)
    for row in range(4):
        np.testing.assert_allclose(run(5, 2, params, x[row : row + 1])[0], whole[row], atol=1e-6)


def test_the_slope_is_that_of_a_pass_through_every_expert(rng: np.random.Generator) -> None:
    params, x = make(rng, 4), jnp.asarray(rng.normal(size=(2, 9, WIDTH)), jnp.float32)

    def dense(x: jax.Array) -> jax.Array:
        chances = jax.nn.softmax(x @ params["router"])
        kept = jnp.where(chances >= jnp.sort(chances)[..., -2:-1], chances, 0)
        gate, up = jnp.split(jnp.einsum("btd,edi->btei", x, params["gate_up"]), 2, axis=-1)
        made = jnp.einsum("btei,eid->bted", jax.nn.silu(gate) * up, params["down"])
        return jnp.sum(jnp.sin(jnp.sum(made * (kept / kept.sum(-1, keepdims=True))[..., None], axis=2)))

    def ours(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(ExpertMLP(config(4, 2)).apply({"params": params}, x)))

    np.testing.assert_allclose(jax.jit(jax.grad(ours))(x), jax.grad(dense)(x), atol=2e-5)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_quantised_experts_are_what_they_say(rng: np.random.Generator, kind: str) -> None:
    params, x = make(rng, 3), np.float32(rng.normal(size=(2, 5, WIDTH)))
    packed = {name: quantize(jnp.asarray(params[name]), kind) for name in ("gate_up", "down")}  # type: ignore[arg-type]
    wide = {name: np.asarray(part.dequantize(jnp.float32)) for name, part in packed.items()}
    got = run(3, 2, params | packed, x)
    np.testing.assert_allclose(got, by_hand(params | wide, x, 2), atol=2e-5)


def test_samples_may_be_mapped_over(rng: np.random.Generator) -> None:
    params, x = make(rng, 5), np.float32(rng.normal(size=(3, 2, 7, WIDTH)))
    mapped = jax.jit(jax.vmap(lambda part: ExpertMLP(config(5, 2)).apply({"params": params}, part)))
    np.testing.assert_allclose(mapped(x), by_hand(params, x, 2), atol=2e-5)


def test_no_token_is_lost_however_they_are_spread(rng: np.random.Generator) -> None:
    numbered = jax.jit(partial(grouped, lambda number, part: part + 10 * number.astype(jnp.float32)), static_argnums=2)
    for _ in range(6):
        tokens, each, count = (int(rng.integers(1, most)) for most in (200, 5, 12))
        chosen = jnp.asarray(rng.integers(0, min(count, int(rng.integers(1, 13))), (tokens, each)))
        x = jnp.asarray(rng.normal(size=(tokens, 2)), jnp.float32)
        got = numbered(x, chosen, count)
        np.testing.assert_allclose(got, x[:, None] + 10 * np.asarray(chosen)[..., None], rtol=1e-6)


@pytest.mark.parametrize("split", [("gate_up",), ("down",), ("gate_up", "down")])
def test_kernels_stay_in_parts_each_by_itself(rng: np.random.Generator, split: tuple[str, ...]) -> None:
    """Two devices, as an axis that is mapped over; one kernel's width may divide where the other's does not."""
    params, x = make(rng, 3), np.float32(rng.normal(size=(4, 1, WIDTH)))
    parts = {name: np.stack(np.split(params[name], 2, axis=-1)) for name in split}

    def device(parts: dict[str, jax.Array], rows: jax.Array) -> Any:
        own = {name: Part(part, -1, stays=True) for name, part in parts.items()}
        return ExpertMLP(config(3, 2)).apply({"params": params | own}, rows)

    found = jax.jit(jax.vmap(device, axis_name=FSDP))(parts, x.reshape(2, 2, 1, WIDTH))
    np.testing.assert_allclose(found.reshape(x.shape), run(3, 2, params, x), rtol=1e-5, atol=1e-6)
