"""The chunked output projection against the whole one, in value, gradient and in what it holds at once."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models import head
from star_jax.models.transformer import LanguageModel, TransformerConfig

COUNT, WIDTH, VOCABULARY = 37, 6, 19


def statistics(output: head.OutputHead) -> Callable[[jax.Array, jax.Array], dict[str, jax.Array]]:
    def function(states: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        log_probs = jax.nn.log_softmax(head.logits(states, output))
        return {
            "chosen": jnp.take_along_axis(log_probs, tokens[:, None], axis=1)[:, 0],
            "moments": jnp.stack([jnp.sum(log_probs, -1), jnp.max(log_probs, -1)], axis=1),
        }

    return function


def random_inputs(
    rng: np.random.Generator, softcap: float | None = None
) -> tuple[head.OutputHead, jax.Array, jax.Array]:
    weight, states = rng.normal(size=(VOCABULARY, WIDTH)), rng.normal(size=(COUNT, WIDTH))
    return (
        head.OutputHead(jnp.asarray(weight, jnp.float32), softcap),
        jnp.asarray(states, jnp.float32),
        jnp.asarray(rng.integers(0, VOCABULARY, COUNT)),
    )


def loss(output: head.OutputHead, states: jax.Array, tokens: jax.Array) -> jax.Array:
    result = head.map_positions(statistics(output), output, states, tokens)
    return jnp.sum(result["chosen"]) + jnp.sum(jnp.square(result["moments"])) / 100


@pytest.mark.parametrize(
    ("elements", "softcap"),
    [(1, None), (VOCABULARY, None), (5 * VOCABULARY, 2.0), (18 * VOCABULARY + 3, None)],
)
def test_chunks_equal_the_whole(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, elements: int, softcap: float | None
) -> None:
    output, states, tokens = random_inputs(rng, softcap)
    want = statistics(output)(states, tokens)
    chex.assert_trees_all_equal(head.map_positions(statistics(output), output, states, tokens), want)
    # A loss of its own in each case: jit would keep the program of another chunk size.
    want_grad = jax.jit(lambda *args: jax.grad(loss, (0, 1))(*args))(output, states, tokens)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", elements)
    got = jax.jit(lambda o, s, t: head.map_positions(statistics(o), o, s, t))(output, states, tokens)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)
    got_grad = jax.jit(lambda *args: jax.grad(loss, (0, 1))(*args))(output, states, tokens)
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
    output, states, tokens = random_inputs(rng)
    many = jnp.stack([states] * samples, axis=1)

    def mixed(hidden: jax.Array, chosen: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(head.logits(hidden, output))
        return jnp.mean(jnp.take_along_axis(log_probs, chosen[:, None, None], axis=2), axis=(1, 2))

    def largest() -> int:
        def total(hidden: jax.Array) -> jax.Array:
            return jnp.sum(head.map_positions(mixed, output, hidden, tokens, samples=samples))

        shapes = list(arrays(jax.make_jaxpr(jax.value_and_grad(total))(many)))
        return max(math.prod(shape) for shape in shapes if shape[-1:] == (VOCABULARY,))

    bound = 4 * samples * VOCABULARY
    assert largest() == COUNT * samples * VOCABULARY
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", bound)
    assert largest() == bound


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_logits_are_float32_whatever_the_states(rng: np.random.Generator, softcap: float | None) -> None:
    output, states, _ = random_inputs(rng, softcap)
    narrow = head.logits(
        states[None].astype(jnp.bfloat16), head.OutputHead(output.weight.astype(jnp.bfloat16), softcap)
    )
    assert narrow.dtype == jnp.float32
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (states, output.weight)]
    want = rounded[0] @ rounded[1].T
    np.testing.assert_allclose(narrow[0], want if softcap is None else softcap * np.tanh(want / softcap), atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_the_head_is_the_models_own_or_its_embedding(
    make_model: Callable[[TransformerConfig], LanguageModel], tiny_config: TransformerConfig, tied: bool
) -> None:
    model = make_model(dataclasses.replace(tiny_config, tie_word_embeddings=tied, logit_softcap=7.0))
    output = head.output_head(model)
    assert output.weight is (model.params["embed_tokens"]["embedding"] if tied else model.params["lm_head"])
    assert output.softcap == 7.0
