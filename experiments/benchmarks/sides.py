"""Who is compared: star_jax, and Transformers + PEFT written in two ways; and the process that each runs in."""

from __future__ import annotations

from typing import NamedTuple

PROCESSES = {"ours": "star_jax", "peer": "Transformers + PEFT"}
"""Modules that have a process each, and what they are called. The peer's two ways share one, and one model."""


class Side(NamedTuple):
    """One of those that are compared.

    Attributes:
      process: of `PROCESSES`.
      way: which of that process's ways, or None where there is but one.
      name: in tables and messages.
      words: what sets it apart from the other peer, in short.
    """

    process: str
    way: str | None
    name: str
    words: str = ""


SIDES = {
    "ours": Side("ours", None, "star_jax"),
    "plain": Side(
        "peer",
        "plain",
        "plain Transformers + PEFT",
        "as guides show it, not merged, logits of all positions",
    ),
    "tuned": Side(
        "peer",
        "tuned",
        "tuned Transformers + PEFT",
        "merged where faster, logits of responses alone",
    ),
}

PEERS = tuple(side for side in SIDES if side != "ours")


def side_of(name: str) -> Side:
    """The side of that name; one that is not known, as of an older record, is a process with a single way."""
    return SIDES.get(name, Side(name, None, PROCESSES.get(name, name)))
