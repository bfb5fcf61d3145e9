"""What the page shows, as plain values for its template. Pure: from the table's rows, the run's status and the options.

Belongs here: the words. How they look is the template's and the style sheet's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from star_jax.annotators.csv_file import WHEN, WHO
from star_jax.annotators.label_table import Cell, from_text
from star_jax.annotators.web import opinions
from star_jax.annotators.web.desk import Sheet
from star_jax.config import SKIP
from star_jax.data.skips import is_skip

KEYS = 9
"""Answers that have a key of their own; where there are more, they are searched."""

RECENT, SHORT = 6, 70
"""Labels that are listed, and characters of a prompt in the list."""

_ROUND = re.compile(r"round (\d+)/(\d+)")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@dataclass(frozen=True)
class Look:
    """What a person has chosen to see.

    Attributes:
      title: of the experiment.
      skip: what stands for an example that cannot be labelled.
      guess: whether the model's answer is shown.
      cost_per_label: of an answer; None where nobody has said.
      currency: that it is in.
      guidelines: HTML; empty for none.
    """

    title: str
    skip: str = SKIP
    guess: bool = True
    cost_per_label: float | None = None
    currency: str = ""
    guidelines: str = ""


def item(sheet: Sheet, name: str, look: Look, used: Collection[str] = (), blind: bool = False) -> dict[str, Any]:
    """One example.

    Args:
      sheet: of the table.
      name: its id, which the sheet has.
      look: what is shown.
      used: ids of what trainings have used.
      blind: whether labels that others have given are hidden.
    """
    cell, why = sheet.cells[name], sheet.why(name)
    guess = str(why["guess"]) if look.guess and "guess" in why else None
    given = {} if blind else opinions.opinions(cell)
    current = "" if blind else cell.text
    answers = list(why.get("answers", ()))
    return {
        "id": name,
        "prompt": from_text(cell.prompt),
        "columns": _columns(cell),
        "answers": [
            {
                "key": "" if len(answers) > KEYS else str(place),
                "text": text,
                "guess": text == guess,
                "current": text == current,
            }
            for place, text in enumerate(answers, start=1)
        ],
        "many": len(answers) > KEYS,
        "guess": guess,
        "why": _reasons(sheet, name, used),
        "current": current,
        "skipped": is_skip(current, look.skip) if current else False,
        "reason": cell.more.get(opinions.REASON, "") if current else "",
        "opinions": [{"who": who or "no name", "text": text} for who, text in given.items()] if len(given) > 1 else [],
        "used": name in used,
        "blind": blind,
    }


def _columns(cell: Cell) -> list[tuple[str, str]]:
    """Columns of the pool that are shown beside the prompt."""
    own = (WHO, WHEN, "strategy", opinions.REASON, opinions.DECIDED)
    shown = [(name, from_text(text)) for name, text in cell.more.items() if text and name not in own]
    return [(name, text) for name, text in shown if not re.match(r"(response|labelled_at|skip_reason) \(", name)]


def _reasons(sheet: Sheet, name: str, used: Collection[str]) -> list[str]:
    """Why an example was picked, in words."""
    why = sheet.why(name)
    names = sheet.asked[name].strategies if name in sheet.asked else ()
    if not why:
        return []
    picker = why.get("picked_by")
    if picker == "random":
        return ["drawn at random", f"number {why['rank'] + 1} of this draw"]
    # A former release did not write down what has picked, only who asks.
    by = f" by {picker}" if picker else f", for {' and '.join(names)}" if names else ""
    said = [f"picked as number {why['rank'] + 1}{by}"]
    if "uncertainty" in why:
        others = [sheet.why(other).get("uncertainty") for other in sheet.cells if other not in used]
        known = [value for value in others if value is not None]
        place = 1 + sum(value > why["uncertainty"] for value in known)
        rank = (
            f" ({_ordinal(place, len(known))} of {len(known)} in this round)"
            if name not in used and len(known) > 1
            else ""
        )
        said.append(f"uncertainty {why['uncertainty']:.3g}{rank}")
    if "score" in why:
        said.append(f"score {why['score']:.3g}")
    return said


def _ordinal(number: int, count: int) -> str:
    """A place among so many, the highest being the first."""
    if number in (1, count):
        return "highest" if number == 1 else "lowest"
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending} highest"


def summary(sheet: Sheet, look: Look, used: Collection[str], who: str) -> dict[str, Any]:
    """How far the round is, what it costs, how far people agree, and what this one has labelled last."""
    cells = sheet.cells
    done, skipped, total = opinions.progress(cells, used, look.skip)
    ever = opinions.progress(cells, (), look.skip)
    agreed = opinions.agreement(cells)
    seconds = opinions.pace(cells, _seconds(cells))
    return {
        "done": done,
        "skipped": skipped,
        "total": total,
        "ever": {"labelled": ever.done - ever.skipped, "skipped": ever.skipped},
        "left": _left(total - done, seconds),
        "cost": _cost(cells, look, used, total - done),
        "agreement": None if not agreed.pairs else _agreement(agreed),
        "recent": [_short(name, cells[name], who) for name in opinions.latest(cells, who)[:RECENT]],
        "second": opinions.next_unseen(cells, who, used) is not None if who else False,
    }


def _agreement(found: opinions.Agreement) -> dict[str, Any]:
    kappa = "" if found.kappa is None else f", Cohen's kappa {found.kappa:.2f}"
    return {
        "said": f"{found.same} of {found.pairs} pairs of labels agree ({100 * found.same / found.pairs:.0f} %{kappa})",
        "differing": found.differing,
    }


def _cost(cells: Mapping[str, Cell], look: Look, used: Collection[str], missing: int) -> str:
    """What the answers of this round cost, what it will cost, and all so far; empty where nobody has said."""
    if look.cost_per_label is None:
        return ""
    now = opinions.answers_given(cells, used)
    amounts = (now, now + missing, opinions.answers_given(cells))
    this, whole, ever = (f"{count * look.cost_per_label:,.2f}" for count in amounts)
    unit = f" {look.currency}" if look.currency else ""
    return f"{this} of {whole}{unit} this round, {ever} so far" if now + missing else f"{ever}{unit} so far"


def _left(missing: int, seconds: float | None) -> str:
    """How long the rest of the round takes at the pace so far; empty where that is not known."""
    if seconds is None or not missing:
        return ""
    minutes = missing * seconds / 60
    return "under a minute left" if minutes < 1 else f"about {minutes:.0f} min left"


def _seconds(cells: Mapping[str, Cell]) -> dict[str, float]:
    """What is written in `labelled_at` -> seconds since 1970, for what can be read as a time."""
    found = {}
    for when in {cell.more.get(WHEN, "") for cell in cells.values()}:
        try:
            found[when] = datetime.fromisoformat(when).timestamp()
        except ValueError:
            continue
    return found


def _short(name: str, cell: Cell, who: str) -> dict[str, str]:
    prompt = " ".join(from_text(cell.prompt).split())
    text = cell.text if cell.more.get(WHO, "") == who else opinions.opinions(cell).get(who, "")
    return {"id": name, "prompt": prompt if len(prompt) <= SHORT else f"{prompt[:SHORT]} …", "text": text}


def readable(line: str) -> str:
    """A line of a run's output without the time before it, its rounds counted from 1 as everywhere on the page."""
    return _ROUND.sub(lambda found: f"round {int(found[1]) + 1} of {int(found[2]) + 1}", _STAMP.sub("", line))


def named_in(message: str, cells: Mapping[str, Cell]) -> str | None:
    """The example that a message is about, where it names one."""
    found = re.search(r"id '([^']+)'", message)
    return found.group(1) if found and found.group(1) in cells else None
