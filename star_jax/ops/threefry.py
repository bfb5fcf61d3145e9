"""Random words by number, as plain arithmetic that the compiler merges into whatever reads them.

`jax.random` draws the same words through an operation that XLA turns into a loop over whole arrays on a CPU: four times
as slow for masks, which want a word for every entry of every input.

Threefry-2x32 with 20 rounds: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", doi
10.1145/2063384.2063405.
"""

from __future__ import annotations

import numpy as np
from jax import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_WORD_BITS = 32


def threefry(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """Two random words for each pair of counters under each key; all uint32, of shapes that broadcast."""
    keys = (*key, key[0] ^ key[1] ^ _PARITY)
    left, right = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            left = left + right
            right = left ^ (right << np.uint32(bits) | right >> np.uint32(_WORD_BITS - bits))
        left = left + keys[(group + 1) % 3]
        right = right + keys[(group + 2) % 3] + np.uint32(group + 1)
    return left, right
