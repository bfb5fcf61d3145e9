"""The chunked output projection against the whole one, in value, gradient and in what it holds at once."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models import head

COUNT, WIDTH, VOCABULARY = 37, 6, 19


def statistics(weight: jax.Array) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    def function(states: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        log_probs = jax.nn.log_softmax(head.logits(states, weight))
        return {
            "chosen": jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0],
            "moments": jnp.stack([jnp.sum(log_probs, -1), jnp.max(log_probs, -1)], axis=1),
        }

    return function


def random_inputs(rng: np.random.Generator) -> tuple[jax.Array, jax.Array, jax.Array]:
    weight, states = rng.normal(size=(VOCABULARY, WIDTH)), rng.normal(size=(COUNT, WIDTH))
    return (
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(states, jnp.float32),
        jnp.asarray(rng.integers(0, VOCABULARY, COUNT)),
    )


def loss(weight: jax.Array, states: jax.Array, tokens: jax.Array) -> jax.Array:
    result = head.map_positions(statistics(weight), weight, states, tokens)
    return jnp.sum(result["chosen"]) + jnp.sum(jnp.square(result["moments"])) / 100


@pytest.mark.parametrize("elements", [1, VOCABULARY, 5 * VOCABULARY, 18 * VOCABULARY + 3])
def test_chunks_equal_the_whole(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    weight, states, tokens = random_inputs(rng)
    want = statistics(weight)(states, tokens)
    chex.assert_trees_all_equal(head.map_positions(statistics(weight), weight, states, tokens), want)
    # A loss of its own in each case: jit would keep the program of another chunk size.
    want_grad = jax.jit(lambda *args: jax.grad(loss, (0, 1))(*args))(weight, states, tokens)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    got = jax.jit(lambda w, s, t: head.map_positions(statistics(w), w, s, t))(weight, states, tokens)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
    got_grad = jax.jit(lambda *args: jax.grad(loss, (0, 1))(*args))(weight, states, tokens)
    chex.assert_trees_all_close(got_grad, want_grad, rtol=1e-4, atol=1e-4)


def arrays(value: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all arrays that a jaxpr computes, those inside its loops included."""
    if hasattr(value, "eqns"):
        for equation in value.eqns:
            yield from (variable.aval.shape for variable in equation.outvars)
            for parameter in equation.params.values():
                for part in parameter if isinstance(parameter, tuple | list) else (parameter,):
                    yield from arrays(part)


@pytest.mark.parametrize("samples", [1, 3])
def test_logits_of_a_chunk_are_all_that_exists(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    """Neither the forward nor the backward pass has an array of logits over the bound."""
    weight, states, tokens = random_inputs(rng)
    many = jnp.stack([states] * samples, axis=1)

    def mixed(hidden: jax.Array, chosen: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(head.logits(hidden, weight))
        return jnp.mean(jnp.take_along_axis(log_probs, chosen[:, None, None], axis=2), axis=(1, 2))

    def largest() -> int:
        def total(hidden: jax.Array) -> jax.Array:
            return jnp.sum(head.map_positions(mixed, weight, hidden, tokens, samples=samples))

        shapes = list(arrays(jax.make_jaxpr(jax.value_and_grad(total))(many)))
        return max(math.prod(shape) for shape in shapes if shape[-1:] == (VOCABULARY,))

    bound = 4 * samples * VOCABULARY
    assert largest() == COUNT * samples * VOCABULARY
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", bound)
    assert largest() == bound


def test_logits_are_float32_whatever_the_states(rng: np.random.Generator) -> None:
    weight, states, _ = random_inputs(rng)
    narrow = head.logits(states[None].astype(jnp.bfloat16), weight.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.float32
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (states, weight)]
    np.testing.assert_allclose(narrow[0], rounded[0] @ rounded[1].T, atol=1e-4)


def test_output_weight_is_the_head_or_the_embedding() -> None:
    embedding, own = jnp.zeros((3, 2)), jnp.ones((3, 2))
    assert head.output_weight({"embed_tokens": {"embedding": embedding}}) is embedding
    assert head.output_weight({"embed_tokens": {"embedding": embedding}, "lm_head": own}) is own
