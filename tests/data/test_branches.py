"""Trees of candidates against the texts that they are made of, walked token by token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.data.batching import Shape, make_batch
from star_jax.data.branches import (
    TRUNK,
    branched_rows,
    grow_tree,
    rows_as_examples,
    shared_beginning,
    tree_arrays,
    tree_widths,
    without_beginning,
)
from star_jax.data.tokenization import TokenizedExample

tokens = st.integers(1, 3)
texts = st.lists(tokens, min_size=1, max_size=5).map(tuple)


def above(tree, place):
    """Tokens of a place and of those that it continues, from the first on."""
    return [tree.tokens[one] for one in range(place + 1) if one <= place < tree.ends[one]] if place != TRUNK else []


@given(st.lists(texts, min_size=1, max_size=6), st.data())
@settings(max_examples=200, deadline=None)
def test_every_continuation_can_be_read_off_its_tree(continuations, data):
    starts = tuple(data.draw(st.integers(0, len(one) - 1)) for one in continuations)
    tree = grow_tree(tuple(continuations), starts)
    for one, start, path in zip(continuations, starts, tree.paths, strict=True):
        assert [tree.targets[edge] for edge in path] == list(one[start:])
        for size, edge in enumerate(path, start):
            assert above(tree, tree.predictors[edge]) == list(one[:size])
    # Each beginning once, and nothing that no candidate goes on from.
    read = {one[:size] for one in continuations for size in range(1, len(one))}
    assert sorted(tuple(above(tree, place)) for place in range(len(tree.tokens))) == sorted(read)
    assert [len(above(tree, place)) - 1 for place in range(len(tree.tokens))] == list(tree.depths)
    assert len(tree.targets) == len({one[:size] for one in continuations for size in range(1, len(one) + 1)})


def rows_of(prompts, candidates):
    return [
        TokenizedExample(np.asarray([*prompt, *candidate], np.int32), len(prompt))
        for prompt in prompts
        for candidate in candidates
    ]


def test_a_row_is_the_prompt_and_the_tree_behind_it():
    [row] = branched_rows(rows_of([(5, 6)], [(1, 2, 3), (1, 2, 4), (7,), (1, 8)]), 4)
    assert row.tokens.tolist() == [5, 6, 1, 2]
    assert row.trunk == 2
    batch = make_batch(rows_as_examples([row]), [0], (Shape(2, 6, 10),))
    arrays = tree_arrays([row], batch, tree_widths([row]))
    assert arrays.positions[0].tolist() == [0, 1, 2, 3, 0, 0]
    assert arrays.ends[0].tolist() == [4, 4, 4, 4, 0, 0]
    found = list(zip(arrays.predictors[0].tolist(), arrays.targets[0].tolist(), strict=True))
    assert [[found[edge] for edge in path if edge < len(found)] for path in arrays.paths[0].tolist()] == [
        [(1, 1), (2, 2), (3, 3)],
        [(1, 1), (2, 2), (3, 4)],
        [(1, 7)],
        [(1, 1), (2, 8)],
    ]
    assert (arrays.ends[1] == 0).all()
    assert (arrays.paths[1] == len(found)).all()


def test_an_end_of_the_prompt_that_candidates_change_belongs_to_the_tree():
    """As where a tokenizer joins the last letter of a prompt with the first of a candidate; it is not counted."""
    rows = [TokenizedExample(np.array([5, 6, 1], np.int32), 2), TokenizedExample(np.array([5, 9, 2], np.int32), 2)]
    [row] = branched_rows(rows, 2)
    assert (row.tokens.tolist(), row.trunk) == ([5, 6, 9], 1)
    assert [[row.tree.targets[edge] for edge in path] for path in row.tree.paths] == [[1], [2]]
    assert branched_rows([*rows, TokenizedExample(np.array([8, 1], np.int32), 1)], 3) is None


@pytest.mark.parametrize(
    ("prompts", "beginning"),
    [
        ([(1, 2, 3), (1, 2, 4, 5)], [1, 2]),
        ([(1, 2), (1, 2, 4)], [1]),  # A prompt keeps a token of its own, which predicts its candidates.
        ([(1,), (1, 2)], []),
        ([(2, 1), (1, 1)], []),
        ([(1, 2, 3)], []),  # What a single prompt begins with is nothing that is shared.
    ],
)
def test_what_all_prompts_begin_with(prompts, beginning):
    rows = branched_rows(rows_of(prompts, [(7, 8, 9), (7,)]), 2)
    found = shared_beginning(rows)
    assert found.tolist() == beginning
    behind = [without_beginning(row, len(found)) for row in rows]
    assert [[*found, *row.tokens] for row in behind] == [row.tokens.tolist() for row in rows]
    assert all(row.trunk >= 1 for row in behind)


def test_prompts_with_the_same_candidates_share_a_tree():
    rows = branched_rows(rows_of([(1, 2), (3,)], [(7, 8), (9,)]), 2)
    assert rows[0].tree is rows[1].tree
