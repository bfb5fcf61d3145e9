"""Rows that are made when they are asked for, against lists of them."""

import numpy as np
import pytest

from star_jax.data.rows import AnsweredRows, PromptRows, lengths_of, row_lengths
from star_jax.data.tokenization import TokenizedExample


def assert_same(found, want):
    assert len(found) == len(want)
    np.testing.assert_array_equal(row_lengths(found), [len(row.tokens) for row in want])
    places = [*range(len(want)), -1]
    for one, other in zip([found[place] for place in places], [want[place] for place in places], strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert one.prompt_length == other.prompt_length
    assert [row.prompt_length for row in found] == [row.prompt_length for row in want]
    assert [len(row.tokens) for row in found[1:4]] == [len(row.tokens) for row in want[1:4]]
    with pytest.raises(IndexError):
        found[len(want)]


def test_rows_are_those_of_lists(rng):
    prompts = [rng.integers(1, 99, size).astype(np.int32) for size in rng.integers(1, 10, 7).tolist()]
    responses, counts = rng.integers(1, 99, (7, 4)).astype(np.int32), rng.integers(0, 5, 7)
    np.testing.assert_array_equal(lengths_of(prompts), [len(prompt) for prompt in prompts])
    assert_same(PromptRows(prompts), [TokenizedExample(prompt, len(prompt)) for prompt in prompts])
    assert_same(
        AnsweredRows(prompts, responses, counts),
        [
            TokenizedExample(np.asarray([*prompt, *response[:count]], np.int32), len(prompt))
            for prompt, response, count in zip(prompts, responses.tolist(), counts, strict=True)
        ],
    )
