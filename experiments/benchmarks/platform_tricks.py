"""Times of what `star_jax.ops.platform` does, without and with: python experiments/benchmarks/platform_tricks.py

Each pair is timed in turns in one process; what is printed is the ratio of the medians, without over with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from star_jax.inference import scoring
from star_jax.models import transformer
from star_jax.models.architecture import TransformerConfig
from star_jax.models.sequences import SequenceInputs, hidden_states
from star_jax.models.transformer import Decoder, LanguageModel
from star_jax.ops.platform import at_least_two_rows

REPEATS = 15


def seconds(run: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - began


def ratio(without: Callable[..., Any], having: Callable[..., Any], *arguments: Any) -> str:
    pair = [jax.jit(without), jax.jit(having)]
    for run in pair:
        jax.block_until_ready(run(*arguments))
    times = [[seconds(run, *arguments) for run in pair] for _ in range(REPEATS)]
    first, second = (median(column) for column in zip(*times, strict=True))
    return f"{first / second:.2f} ({1e3 * first:.2f} ms / {1e3 * second:.2f} ms)"


def statistics(once: bool) -> Callable[..., Any]:
    """Scoring's statistics of a chunk of logits, whose exponentials are read three times."""

    def run(logits: jax.Array, targets: jax.Array) -> Any:
        with patched(scoring, once):
            return scoring.distribution_statistics(logits[None], targets)

    return run


def layer(once: bool) -> Callable[..., Any]:
    """Hidden states of packed rows, whose queries and keys are rotated before attention cuts them up."""

    def run(model: LanguageModel, inputs: SequenceInputs) -> Any:
        with patched(transformer, once):
            return hidden_states(model, None, inputs, None, int(inputs.tokens.size))

    return run


@contextmanager
def patched(module: Any, once: bool) -> Iterator[None]:
    """The module with or without `computed_once`, while it is traced."""
    whole = module.computed_once
    module.computed_once = whole if once else (lambda values: values)
    try:
        yield
    finally:
        module.computed_once = whole


def attention(two: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Scores of one bfloat16 query a head against a cache."""

    def run(query: jax.Array, keys: jax.Array) -> jax.Array:
        rows = at_least_two_rows(query, 2) if two else query
        scores = jnp.einsum("bgtd,bgsd->bgts", rows, keys, preferred_element_type=jnp.float32)
        return scores[:, :, :1]

    return run


def steps(outside: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Sixteen steps of a loop that multiply by each of four stacked kernels, taken apart before the loop or inside."""

    def run(x: jax.Array, stacked: jax.Array) -> jax.Array:
        apart = [stacked[number] for number in range(4)]

        def advance(_: int, x: jax.Array) -> jax.Array:
            for number in range(4):
                kernel = apart[number] if outside else jax.lax.dynamic_index_in_dim(stacked, number, keepdims=False)
                x = jnp.tanh(x @ kernel)
            return x

        return jax.lax.fori_loop(0, 16, advance, x)

    return run


def main() -> None:
    keys = iter(jax.random.split(jax.random.key(0), 9))
    logits = jax.random.normal(next(keys), (128, 8192))
    print("computed_once, statistics:", ratio(statistics(False), statistics(True), logits, jnp.arange(128)))
    shape = TransformerConfig(1024, 384, 1024, 4, 6, 6, 64)
    decoder = Decoder(shape)
    model = LanguageModel(decoder, decoder.init(next(keys), jnp.zeros((1, 8), jnp.int32))["params"])
    inputs = SequenceInputs(jnp.ones((8, 256), jnp.int32), jnp.full(8, 200), jnp.full(8, 256))
    print("computed_once, layers:", ratio(layer(False), layer(True), model, inputs))
    query = jax.random.normal(next(keys), (16, 8, 1, 64)).astype(jnp.bfloat16)
    cache = jax.random.normal(next(keys), (16, 8, 512, 64)).astype(jnp.bfloat16)
    print("at_least_two_rows:", ratio(attention(False), attention(True), query, cache))
    x = jax.random.normal(next(keys), (8, 1024))
    stacked = jax.random.normal(next(keys), (4, 1024, 1024)) / 32
    print("before_the_loop_on_a_cpu:", ratio(steps(False), steps(True), x, stacked))


if __name__ == "__main__":
    main()
