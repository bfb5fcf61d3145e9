"""How long prompts and responses may be, and what is said of those that are longer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from star_jax.config import TooLong
from star_jax.errors import DataError

LONG_NAMED = 5
"""Examples over a limit that a message names; it counts the others."""


@dataclass(frozen=True)
class Limits:
    """Longest prompt and response in tokens, and what to do with longer ones."""

    prompt: int
    response: int
    too_long: TooLong = "error"


@dataclass
class Overlong:
    """Prompts, or responses, over their limit, gathered one after the other so that they can be refused together.

    Attributes:
      part: what they are.
      limit: in tokens.
      found: id and tokens of each.
    """

    part: Literal["prompt", "response"]
    limit: int
    found: list[tuple[str, int]] = field(default_factory=list)

    def add(self, name: str, length: int) -> bool:
        """Whether one of so many tokens is over the limit, and so among them."""
        over = length > self.limit
        if over:
            self.found.append((name, length))
        return over

    def refuse(self, of: int) -> None:
        """Refuses them, if there are any; `of` is how many were looked at.

        Raises:
          DataError: naming the first of them and the longest.
        """
        if not self.found:
            return
        advice = f"raise max_{self.part}_tokens, or set too_long to drop or truncate-left"
        limit = f"over the limit of {self.limit}"
        if len(self.found) == 1:
            name, length = self.found[0]
            raise DataError(f"example {name}: the {self.part} has {length} tokens, {limit}; {advice}")
        named = ", ".join(f"{name} with {length}" for name, length in self.found[:LONG_NAMED])
        more = f" and {len(self.found) - LONG_NAMED} more" if len(self.found) > LONG_NAMED else ""
        longest = max(length for _, length in self.found)
        raise DataError(
            f"{len(self.found)} of {of} {self.part}s are {limit} tokens ({named}{more}), the longest has {longest}; "
            f"{advice}"
        )
