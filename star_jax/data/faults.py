"""Everything that is wrong with a table in one message, so that a person corrects it once and not row by row."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 10
"""Different complaints that a message spells out."""

NAMED = 100
"""Places that a message names; it counts the others."""

Fault = tuple[str, str]
"""Where, and what is wrong there."""


def said_at_once(faults: Sequence[Fault]) -> str:
    """One sentence on all faults, the first one first: `line 2: …; line 5: … (likewise line 8)`.

    Args:
      faults: at least one, in the order of the table.
    """
    places: dict[str, list[str]] = {}
    for where, what in faults:
        places.setdefault(what, []).append(where)
    spelt, rest = list(places.items())[:SHOWN], list(places.items())[SHOWN:]
    parts = [
        f"{first}: {what}" + (f" (likewise {_listed(others)})" if others else "") for what, (first, *others) in spelt
    ]
    more = [where for _, found in rest for where in found]
    return "; ".join([*parts, *([f"and {len(more)} more: {_listed(more)}"] if more else [])])


def _listed(places: Sequence[str]) -> str:
    more = len(places) - NAMED
    return ", ".join(places[:NAMED]) + (f" and {more} more" if more > 0 else "")
