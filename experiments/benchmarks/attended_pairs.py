"""Time of an operation of attention beside one of a product with weights: `branched_pool.PAIR_COST`.

    python experiments/benchmarks/attended_pairs.py

Attention in rows that branch, masked pairs counted too, and attention to a shared beginning; each against the product
of as many tokens with a weight, timed right after it. Prints the ratio of seconds an operation for each, and their
median.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.ops.attention import AttentionOptions
from star_jax.ops.attention_branches import SharedKeys, attend_branches, attend_shared
from star_jax.ops.packing import Branches

TOKENS, REPEATS, TURNS = 1536, 7, 3
HEADS = ((9, 3, 64, 576, 1536), (12, 12, 32, 384, 1024))
"""Query heads, key-value heads, width of each, of the model and of the MLP: SmolLM2-135M, and a narrower Llama."""


def main() -> None:
    """Prints a line for each shape."""
    ratios = []
    for heads, groups, width, model, inner in HEADS:
        product = jax.jit(jnp.matmul)
        factors = _random(TOKENS, model), _random(model, inner)
        for size in (48, 96, 192, 384):
            rows = TOKENS // size
            places = jnp.broadcast_to(jnp.arange(size), (rows, size))
            branches = Branches(places, jnp.full((rows, size), size))
            arrays = [_random(rows, size, count, width) for count in (heads, groups, groups)]
            attend = jax.jit(lambda *qkv, branches=branches: attend_branches(*qkv, branches, AttentionOptions()))
            ratios += _ratios(f"{heads} heads, rows of {size}", attend, arrays, product, factors, heads * width * size)
        for size in (8, 20, 64, 256):
            shared = SharedKeys(_random(groups, size, width), _random(groups, size, width))
            query, positions = _random(TOKENS, heads, width), jnp.zeros(TOKENS, jnp.int32)
            attend = jax.jit(lambda query, shared, at=positions: attend_shared(query, shared, at, AttentionOptions()))
            said = f"{heads} heads, a beginning of {size}"
            ratios += _ratios(said, attend, [query, shared], product, factors, heads * width * size)
    print(f"median {median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")


def _ratios(
    said: str, attend: Any, arrays: list[Any], product: Any, factors: tuple[Any, Any], pairs: int
) -> list[float]:
    """Seconds an operation of attention over those of a product, in turns."""
    found = []
    for _ in range(TURNS):
        attending = _seconds(lambda: attend(*arrays)) / (4 * TOKENS * pairs)
        multiplying = _seconds(lambda: product(*factors)) / (2 * TOKENS * factors[1].size)
        found.append(attending / multiplying)
    print(f"{said}: {', '.join(f'{ratio:.1f}' for ratio in found)}", flush=True)
    return found


def _seconds(run: Callable[[], Any]) -> float:
    """The least of some calls, after one that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _random(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


if __name__ == "__main__":
    main()
