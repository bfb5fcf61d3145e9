"""What is longer than a limit allows: counted, the first few named, and refused in one sentence."""

from __future__ import annotations

from typing import Literal

from star_jax.errors import DataError

NAMED = 5
"""Examples that a message names; it counts the others."""


class OverLimit:
    """Prompts, or responses, with more tokens than they may have; they may come one at a time.

    Args:
      part: which of the two.
      limit: tokens.
    """

    def __init__(self, part: Literal["prompt", "response"], limit: int) -> None:
        self._part, self._limit = part, limit
        self._named: list[tuple[str, int]] = []
        self._seen = self._longest = self.count = 0

    def add(self, name: str, length: int) -> bool:
        """Notes an example of so many tokens, and says whether it is over the limit."""
        self._seen += 1
        if length <= self._limit:
            return False
        self.count += 1
        self._longest = max(self._longest, length)
        if len(self._named) < NAMED:
            self._named.append((name, length))
        return True

    def refuse(self) -> None:
        """Refuses all of them at once.

        Raises:
          DataError: there is one.
        """
        if not self.count:
            return
        part, limit = self._part, self._limit
        advice = f"raise max_{part}_tokens, or set too_long to drop or truncate-left"
        if self.count == 1:
            name, length = self._named[0]
            raise DataError(f"example {name}: the {part} has {length} tokens, over the limit of {limit}; {advice}")
        named = ", ".join(f"{name} with {length}" for name, length in self._named)
        more = f" and {self.count - NAMED} more" if self.count > NAMED else ""
        raise DataError(
            f"{self.count} of {self._seen} {part}s are over the limit of {limit} tokens ({named}{more}), the longest "
            f"has {self._longest}; {advice}"
        )
