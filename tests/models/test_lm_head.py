"""The output projection at chosen positions against a loop over all of them, and what it holds at once."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import TrainingConfig
from star_jax.inference.scoring import statistics_of
from star_jax.models import lm_head as head
from star_jax.models.architecture import TransformerConfig
from star_jax.models.transformer import LanguageModel
from star_jax.training.losses import token_losses

BATCH, LENGTH, WIDTH, VOCABULARY = 4, 9, 6, 19


def random_inputs(
    rng: np.random.Generator, softcap: float | None = None
) -> tuple[head.OutputHead, jax.Array, jax.Array]:
    weight, states = rng.normal(size=(VOCABULARY, WIDTH)), rng.normal(size=(BATCH, LENGTH, WIDTH))
    return (
        head.OutputHead(jnp.asarray(weight, jnp.float32), softcap),
        jnp.asarray(states, jnp.float32),
        jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, LENGTH))),
    )


def random_mask(rng: np.random.Generator, kind: str) -> np.ndarray:
    if kind == "responses":
        first, last = np.sort(rng.integers(0, LENGTH + 1, (2, BATCH, 1)), axis=0)
        places = np.arange(LENGTH)
        return (places >= first) & (places < last)
    shares = {"scattered": 0.4, "none": 0.0, "all": 1.0}
    mask = rng.random((BATCH, LENGTH)) < shares.get(kind, 0.0)
    if kind == "the last alone":
        mask[-1, -1] = True
    return mask


# Chosen positions.


def of_chunk(states: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
    """Leaves of each rank and of two types, none of them 0."""
    return {
        "token": tokens + 1,
        "sum": 1 + jnp.sum(jnp.square(states), axis=-1) * tokens,
        "outer": 1 + jnp.square(states[:, :, None] * states[:, None]),
    }


@pytest.mark.parametrize("kind", ["scattered", "responses", "none", "all", "the last alone"])
@pytest.mark.parametrize("chunk", [1, 5, 12, BATCH * LENGTH - 1, BATCH * LENGTH, 1000])
def test_positions_equal_a_loop(rng: np.random.Generator, kind: str, chunk: int) -> None:
    """Twelve divides the positions, five leaves a rest, a thousand are more than there are."""
    _, states, tokens = random_inputs(rng)
    mask, rounds = random_mask(rng, kind), []

    def counted(states: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        jax.debug.callback(lambda: rounds.append(len(tokens)))
        return of_chunk(states, tokens)

    @jax.jit
    def run(mask: jax.Array, states: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        return head.at_positions(counted, mask, states, tokens, chunk=chunk)

    got, want = jax.tree.map(np.asarray, (run(mask, states, tokens), jax.jit(jax.vmap(of_chunk))(states, tokens)))
    jax.effects_barrier()
    # No more chunks than the positions that were asked for fill, and what little is left in at most two small ones.
    size, count = min(chunk, BATCH * LENGTH), int(mask.sum())
    few, left = math.ceil(size / head.FEW), count % size
    small = math.ceil(left / few)
    assert rounds == [size] * (count // size) + ([size] if small > 2 else [few] * small)
    assert {name: leaf.shape for name, leaf in got.items()} == {
        "token": (BATCH, LENGTH),
        "sum": (BATCH, LENGTH),
        "outer": (BATCH, LENGTH, WIDTH, WIDTH),
    }
    assert got["token"].dtype == tokens.dtype
    for row, place in np.ndindex(BATCH, LENGTH):
        here = {name: leaf[row, place] for name, leaf in got.items()}
        if mask[row, place]:
            chex.assert_trees_all_close(here, {name: leaf[row, place] for name, leaf in want.items()}, rtol=1e-6)
        else:
            assert all((leaf == 0).all() for leaf in here.values())


def test_what_stands_at_other_positions_is_not_read(rng: np.random.Generator) -> None:
    _, states, tokens = random_inputs(rng)
    mask = random_mask(rng, "scattered")
    spoilt = jnp.where(mask[..., None], states, jnp.nan)
    chosen = jax.jit(lambda states: head.at_positions(of_chunk, mask, states, tokens, chunk=7))
    got, want = (chosen(given) for given in (spoilt, states))
    chex.assert_trees_all_equal(got, want)


# How much is held at once.


@pytest.mark.parametrize(
    ("vocabulary", "samples", "most", "fewest", "want"),
    [(100, 1, 1000, 4, 10), (100, 3, 1000, 2, 3), (100, 3, 1000, 4, 4), (5000, 1, 1000, 64, 64)],
)
def test_a_chunk_holds_so_many_logits_or_the_fewest_positions(
    monkeypatch: pytest.MonkeyPatch, vocabulary: int, samples: int, most: int, fewest: int, want: int
) -> None:
    monkeypatch.setattr(head, "FEWEST_POSITIONS", fewest)
    output = head.OutputHead(jnp.zeros((vocabulary, 1)))
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", {"cpu": most})
    assert head.chunk_size(output, samples) == want
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", {"another": 1})
    monkeypatch.setattr(head, "LOGITS_ELSEWHERE", most)
    assert head.chunk_size(output, samples) == want


def arrays(value: Any) -> Iterator[tuple[int, ...]]:
    """Shapes of all arrays that a jaxpr computes, those inside its loops included."""
    if hasattr(value, "eqns"):
        for equation in value.eqns:
            yield from (variable.aval.shape for variable in equation.outvars)
            for parameter in equation.params.values():
                for part in parameter if isinstance(parameter, tuple | list) else (parameter,):
                    yield from arrays(getattr(part, "jaxpr", part))


def largest(function: Callable[..., Any], *arguments: Any) -> int:
    """Entries of the largest array of logits: one that is as wide as the vocabulary."""
    shapes = arrays(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max(math.prod(shape) for shape in shapes if shape[-1:] == (VOCABULARY,))


@pytest.mark.parametrize("samples", [1, 3])
def test_logits_of_a_chunk_are_all_that_scoring_holds(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    output, states, tokens = random_inputs(rng)
    many, mask = jnp.stack([states] * samples), random_mask(rng, "responses")
    assert largest(statistics_of, many, tokens, mask, output) == samples * BATCH * LENGTH * VOCABULARY
    monkeypatch.setattr(head, "FEWEST_POSITIONS", 1)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", {"cpu": 4 * samples * VOCABULARY})
    # A function of its own: what was traced for another size of chunks would be taken again.
    bounded = largest(lambda *given: statistics_of(*given), many, tokens, mask, output)
    assert bounded == 4 * samples * VOCABULARY


def test_logits_of_a_chunk_are_all_that_training_holds(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the forward and in the backward pass."""
    output, states, tokens = random_inputs(rng)
    mask, config = random_mask(rng, "responses"), TrainingConfig(confidence_penalty=0.1, label_smoothing=0.1)

    def gradient() -> Callable[..., Any]:
        return jax.value_and_grad(lambda states: token_losses(states, tokens, mask, output, config).penalised)

    assert largest(gradient(), states) == BATCH * LENGTH * VOCABULARY
    monkeypatch.setattr(head, "FEWEST_POSITIONS", 1)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", {"cpu": 4 * VOCABULARY})
    assert largest(gradient(), states) == 4 * VOCABULARY


# The projection itself.


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
