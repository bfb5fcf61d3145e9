"""A prompt and all of its candidates as one row: the prompt once, and behind it the candidates' tokens as a tree.

A token of a response is predicted where the one before it is read; the last is never read. So the tree holds what is
before the last token of some candidate, and beginnings that candidates share stand in it once. It is laid out in
depth-first order, in which what continues a token lies in one piece behind it.

Shapes: `B` rows, `T` places of a row, `C` candidates, `E` tokens that are predicted, `D` tokens of the longest
candidate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from star_jax.data.batching import Batch
from star_jax.data.tokenization import TokenizedExample

Tokens = tuple[int, ...]

TRUNK = -1
"""Stands for the last place before a tree among the places of its tokens."""


@dataclass(frozen=True)
class Tree:
    """Continuations of one text; places are counted from the first behind it.

    Attributes:
      tokens: of each place, those that are read.
      depths: `T` number of tokens between the text and the place.
      ends: `T` the place behind the last that continues this one.
      predictors: `E` the place that predicts each token, or `TRUNK`.
      targets: `E` the tokens that are predicted.
      paths: for each continuation, which of the E it consists of.
    """

    tokens: Tokens
    depths: Tokens
    ends: Tokens
    predictors: Tokens
    targets: Tokens
    paths: tuple[Tokens, ...]


class BranchedRow(NamedTuple):
    """A prompt with its candidates.

    Attributes:
      tokens: of the trunk, which all of them begin with, and of the tree behind it.
      trunk: tokens of the trunk, at least 1.
      tree: what is behind it.
    """

    tokens: np.ndarray
    trunk: int
    tree: Tree


class Widths(NamedTuple):
    """Sizes that hold the trees of all rows of a pool: E, C and D."""

    targets: int
    candidates: int
    longest: int


class TreeArrays(NamedTuple):
    """The trees of the rows of a batch.

    Attributes:
      positions: `B×T`, as `ops.packing.Branches` has them.
      ends: `B×T`, likewise.
      predictors: `B×E` place in the row that predicts a token.
      targets: `B×E` the token.
      paths: `B×C×D` which of the E each candidate consists of; E where it has fewer tokens than D.
    """

    positions: np.ndarray
    ends: np.ndarray
    predictors: np.ndarray
    targets: np.ndarray
    paths: np.ndarray


@lru_cache(maxsize=1024)
def grow_tree(continuations: tuple[Tokens, ...], counted_from: Tokens) -> Tree:
    """The tree of some continuations, each of at least one token.

    Args:
      continuations: tokens of each; some may be the same, or the beginning of others.
      counted_from: for each, how many of its first tokens do not belong to its path.
    """
    edges = sorted({one[:size] for one in continuations for size in range(1, len(one) + 1)})
    # In the order of sorted beginnings, those that continue one follow it at once: depth first.
    nodes = sorted({one[:-1] for one in edges if len(one) > 1})
    place = {node: number for number, node in enumerate(nodes)} | {(): TRUNK}
    edge = {one: number for number, one in enumerate(edges)}
    sizes = Counter(node[:size] for node in nodes for size in range(1, len(node) + 1))
    return Tree(
        tokens=tuple(node[-1] for node in nodes),
        depths=tuple(len(node) - 1 for node in nodes),
        ends=tuple(place[node] + sizes[node] for node in nodes),
        predictors=tuple(place[one[:-1]] for one in edges),
        targets=tuple(one[-1] for one in edges),
        paths=tuple(
            tuple(edge[one[:size]] for size in range(start + 1, len(one) + 1))
            for one, start in zip(continuations, counted_from, strict=True)
        ),
    )


def branched_rows(rows: Sequence[TokenizedExample], candidates: int) -> list[BranchedRow] | None:
    """One row for every C neighbours, which are one prompt with each candidate behind it.

    Where a tokenizer joins the end of a prompt with the beginning of some candidates, the trunk is what all of the
    texts begin with, and the rest of the prompt belongs to the tree.

    Returns:
      The rows; None where some prompt's texts have no token in common.
    """
    found = []
    for start in range(0, len(rows), candidates):
        row = _branched(rows[start : start + candidates])
        if row is None:
            return None
        found.append(row)
    return found


def _branched(group: Sequence[TokenizedExample]) -> BranchedRow | None:
    first, most = group[0].tokens, min(row.prompt_length for row in group)
    trunk = min(_alike(first[:most], row.tokens[:most]) for row in group)
    if trunk == 0:
        return None
    tails = tuple(tuple(row.tokens[trunk:].tolist()) for row in group)
    tree = grow_tree(tails, tuple(row.prompt_length - trunk for row in group))
    return BranchedRow(np.concatenate([first[:trunk], np.asarray(tree.tokens, np.int32)]), trunk, tree)


def _alike(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    size = min(len(one), len(other))
    differ = np.flatnonzero(one[:size] != other[:size])
    return int(differ[0]) if differ.size else size


def shared_beginning(rows: Sequence[BranchedRow]) -> np.ndarray:
    """The tokens that all trunks begin with, of which each has at least one more; of a single row, none."""
    if len(rows) < 2:
        return np.zeros(0, np.int32)
    first, size = rows[0].tokens, min(row.trunk for row in rows) - 1
    for row in rows:
        size = _alike(first[:size], row.tokens[:size])
    return np.asarray(first[:size], np.int32)


def without_beginning(row: BranchedRow, count: int) -> BranchedRow:
    """The row without its first tokens, which somebody else has read."""
    return BranchedRow(row.tokens[count:], row.trunk - count, row.tree)


def tree_widths(rows: Sequence[BranchedRow]) -> Widths:
    """Sizes for all of the rows."""
    trees = {id(row.tree): row.tree for row in rows}.values()
    return Widths(
        max(len(tree.targets) for tree in trees),
        max(len(tree.paths) for tree in trees),
        max(len(path) for tree in trees for path in tree.paths),
    )


def tree_arrays(rows: Sequence[BranchedRow], batch: Batch, widths: Widths) -> TreeArrays:
    """The trees of the rows that a batch holds, by its `index`."""
    size, width = batch.tokens.shape
    positions, ends = np.zeros((2, size, width), np.int32)
    predictors, targets = np.zeros((2, size, widths.targets), np.int32)
    paths = np.full((size, widths.candidates, widths.longest), widths.targets, np.int32)
    for place in np.flatnonzero(batch.row_mask):
        row = rows[batch.index[place]]
        total, tree, trunk = len(row.tokens), row.tree, row.trunk
        positions[place, :trunk], ends[place, :trunk] = np.arange(trunk), total
        positions[place, trunk:total] = trunk + np.asarray(tree.depths, np.int32)
        ends[place, trunk:total] = trunk + np.asarray(tree.ends, np.int32)
        count = len(tree.targets)
        predictors[place, :count] = trunk + np.asarray(tree.predictors, np.int32)
        targets[place, :count] = tree.targets
        for number, path in enumerate(tree.paths):
            paths[place, number, : len(path)] = path
    return TreeArrays(positions, ends, predictors, targets, paths)


def rows_as_examples(rows: Sequence[BranchedRow]) -> list[TokenizedExample]:
    """What batches are made of."""
    return [TokenizedExample(row.tokens, row.trunk) for row in rows]
