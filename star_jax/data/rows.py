"""Rows that are made when they are asked for, so that what holds a pool holds its tokens once.

Shapes: `N` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np

from star_jax.data.tokenization import TokenizedExample


@runtime_checkable
class Measured(Protocol):
    """What knows the lengths of its items without making them."""

    @property
    def lengths(self) -> np.ndarray:
        """`N` int64, tokens of each."""
        ...


def lengths_of(prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Tokens `N` int64 of each prompt."""
    if isinstance(prompts, Measured):
        return prompts.lengths
    return np.fromiter(map(len, prompts), np.int64, len(prompts))


def row_lengths(rows: Sequence[TokenizedExample]) -> np.ndarray:
    """Tokens `N` int64 of each row, prompt and response together."""
    if isinstance(rows, Measured):
        return rows.lengths
    return np.fromiter((len(row.tokens) for row in rows), np.int64, len(rows))


class _Made(Sequence[TokenizedExample]):
    """Rows by their number."""

    def _make(self, number: int) -> TokenizedExample:
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> TokenizedExample: ...

    @overload
    def __getitem__(self, place: slice) -> list[TokenizedExample]: ...

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._make(number) for number in range(*place.indices(len(self)))]
        return self._make(range(len(self))[place])  # Raises for what is outside, and counts from the end.


class PromptRows(_Made):
    """Prompts alone, as rows without a response."""

    def __init__(self, prompts: Sequence[np.ndarray]) -> None:
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def lengths(self) -> np.ndarray:
        """`N` int64, tokens of each prompt."""
        return lengths_of(self._prompts)

    def _make(self, number: int) -> TokenizedExample:
        tokens = self._prompts[number]
        return TokenizedExample(tokens, len(tokens))


class AnsweredRows(_Made):
    """Prompts, each followed by its response.

    Args:
      prompts: tokens of each.
      responses: `N×R` tokens of the responses.
      counts: `N`, how many of them each response has.
    """

    def __init__(self, prompts: Sequence[np.ndarray], responses: np.ndarray, counts: np.ndarray) -> None:
        self._prompts, self._responses, self._counts = prompts, responses, counts

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def lengths(self) -> np.ndarray:
        """`N` int64, tokens of each prompt with its response."""
        return lengths_of(self._prompts) + self._counts

    def _make(self, number: int) -> TokenizedExample:
        prompt, response = self._prompts[number], self._responses[number, : self._counts[number]]
        return TokenizedExample(np.concatenate([prompt, response]), len(prompt))
