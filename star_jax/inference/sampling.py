"""Tokens drawn from the distribution that a model gives, instead of the most probable one.

Shapes: `B` rows, `V` vocabulary, `C` entries of a block of it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.errors import ConfigError

Array = jax.Array

BLOCK = 256
"""C: a draw looks for its place among the sums of blocks, then within one of them."""


class Decoding(NamedTuple):
    """How responses are drawn; known when it is compiled.

    Attributes:
      samples: responses of each prompt.
      temperature: divides the logits.
      top_p: a token is drawn from the nucleus, the fewest most probable tokens that have at least this probability
        together (Holtzman et al. 2020, arXiv 1904.09751, section 3.1); 1 for all tokens.
    """

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0


class Draws(NamedTuple):
    """What draws the tokens of a batch.

    Attributes:
      decoding: how.
      keys: `B` PRNG keys, one a prompt. A response depends on its prompt, its key and its number alone.
    """

    decoding: Decoding
    keys: Array


def check_decoding(decoding: Decoding) -> None:
    """Refuses what cannot be drawn.

    Raises:
      ConfigError: there is no sample, the temperature is not above 0, or the nucleus is empty or more than all.
    """
    if decoding.samples < 1:
        raise ConfigError(f"{decoding.samples} samples of an answer were asked for; at least 1 can be drawn")
    if not 0 < decoding.temperature < float("inf"):
        raise ConfigError(f"temperature is {decoding.temperature}; it must be above 0 (greedy answers are not drawn)")
    if not 0 < decoding.top_p <= 1:
        raise ConfigError(f"top_p is {decoding.top_p}; it must be above 0 and at most 1")


def folded(keys: Array, numbers: Array) -> Array:
    """Keys `B` for a number, or for one of each row: the numbers folded into `keys` `B`."""
    return jax.vmap(jax.random.fold_in)(keys, jnp.broadcast_to(numbers, keys.shape))


def draw_tokens(logits: Array, keys: Array, decoding: Decoding) -> Array:
    """One token a row from its nucleus.

    Tokens are drawn from the whole distribution until one is of the nucleus, which is exact, and takes no sorting of a
    large vocabulary: on average at most 1 / top_p draws a row. Of equally probable tokens those of smaller number come
    first.

    Args:
      logits: `B×V`.
      keys: `B` PRNG keys.
      decoding: temperature and nucleus.

    Returns:
      `B` int32.
    """
    scaled = logits.astype(jnp.float32) / decoding.temperature
    powers = jnp.exp(scaled - jnp.max(scaled, axis=-1, keepdims=True))
    blocks = jnp.pad(powers, ((0, 0), (0, -powers.shape[-1] % BLOCK))).reshape(powers.shape[0], -1, BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    total = jnp.sum(sums, axis=-1)
    places = jnp.arange(powers.shape[-1])

    def attempt(at: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, token, found = at
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number)))(keys)
        drawn = jax.vmap(_inverse)(blocks, sums, uniform * total)
        power = jnp.take_along_axis(powers, drawn[:, None], axis=-1)
        good = power[:, 0] != 0  # 0 of an entry behind the last, where sums are rounded up to it
        if decoding.top_p < 1:
            before = (powers > power) | ((powers == power) & (places < drawn[:, None]))
            good &= ~(jnp.sum(jnp.where(before, powers, 0), axis=-1) >= decoding.top_p * total)
        return number + 1, jnp.where(found, token, drawn), found | good

    nothing = jnp.zeros(powers.shape[0], jnp.int32)
    start = (jnp.zeros((), jnp.int32), nothing, jnp.zeros(powers.shape[0], bool))
    return jax.lax.while_loop(lambda at: ~jnp.all(at[2]), attempt, start)[1]


def _inverse(blocks: Array, sums: Array, target: Array) -> Array:
    """The entry of `blocks` `·×C`, whose `sums` are given, in which the running sum passes the target."""
    place = partial(jnp.searchsorted, side="right")
    ends = jnp.cumsum(sums)
    block = jnp.minimum(place(ends, target), sums.shape[0] - 1)
    within = place(jnp.cumsum(blocks[block]), target - (ends[block] - sums[block]))
    number = block * BLOCK + jnp.minimum(within, BLOCK - 1)
    return number.astype(jnp.int32)
