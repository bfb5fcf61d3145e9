"""How long the rows of an experiment are, as far as may be known before it: what shapes of batches are chosen from.

Shapes: `N` pool prompts of all seeds together, `Q` test examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from star_jax.data.bucketing import likely_lengths
from star_jax.data.rows import lengths_of
from star_jax.data.run_data import RunData
from star_jax.data.tokenization import Encoder, TokenizedExample


class Lengths(NamedTuple):
    """Tokens of rows.

    Attributes:
      pool: prompts of one seed's pool.
      prompts: `N` int64, of the pools of all seeds, each once.
      likely: `N` int64, of prompts with responses as long as the test set's; none where no response is known.
      asked: `Q` int64, of test prompts.
      known: `Q` int64, of test prompts with their responses.
      responses: `Q` int64, of those responses.
      replay: of replay rows.
      longest: of the longest row that there may be.
    """

    pool: int
    prompts: np.ndarray
    likely: np.ndarray
    asked: np.ndarray
    known: np.ndarray
    responses: np.ndarray
    replay: tuple[int, ...]
    longest: int


def known_lengths(encoder: Encoder, data: Sequence[RunData], replay: Sequence[TokenizedExample]) -> Lengths:
    """Those of the data of all seeds.

    Prompts of the pool are known, their responses are hidden; how long those may be, the test set's tell, which all
    seeds have.
    """
    test = data[0].test
    pools = {one.facts["pool"]: one.tokens for one in data}  # seeds may have the same one
    prompts = np.concatenate([lengths_of(part) for part in pools.values()])
    asked = lengths_of(test.prompts)
    known = np.asarray([len(row.tokens) for row in test.rows], np.int64)
    responses = np.asarray([len(row.tokens) - row.prompt_length for row in test.rows], np.int64)
    return Lengths(
        pool=len(data[0].pool),
        prompts=prompts,
        likely=likely_lengths(prompts, responses),
        asked=asked,
        known=known,
        responses=responses,
        replay=tuple(len(row.tokens) for row in replay),
        longest=max(encoder.longest_row(np.concatenate([prompts, asked])), int(known.max(initial=1))),
    )


def longest_lengths(pool: int, tests: int, prompt: int, response: int) -> Lengths:
    """Those of so many rows that are as long as the limits let them be."""
    prompts, asked = np.full(pool, prompt, np.int64), np.full(tests, prompt, np.int64)
    return Lengths(
        pool, prompts, prompts + response, asked, asked + response, np.full(tests, response), (), prompt + response
    )
