"""How the report's figures look: colours, markers, limits of axes, and the fonts for the names in them.

Colours come from Okabe and Ito's palette, which colour-blind readers can tell apart; a strategy keeps its
colour and marker in every figure of a report, and random is grey.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib.style
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from star_jax.report.read import BASELINE, Curve, Run, by_strategy, settled

P = ParamSpec("P")

GREY = "#7A7A7A"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")
SIGNS = dict(zip(MARKERS, "●■▲◆▼✚", strict=True))
"""Marker of the figures -> the sign of the page's legends."""

GROUP_COLOURS = (
    "#332288",
    "#88CCEE",
    "#CC6677",
    "#117733",
    "#DDCC77",
    "#AA4499",
    "#44AA99",
    "#882255",
    "#999933",
    "#6699CC",
    "#661100",
    "#E69F00",
)
OTHER_COLOUR = "#C8C8C8"

PHASE_COLOURS = {
    "train": "#4477AA",
    "score": "#EE6677",
    "evaluate": "#CCBB44",
    "compile": "#AA3377",
    "load": "#66CCEE",
    "write": "#228833",
    "other": "#BBBBBB",
}
"""Phase of `tracking.timing.PHASES` -> its colour, in Paul Tol's bright scheme."""

DEFAULT_FONT = "DejaVu Sans"
"""Comes with matplotlib."""

STYLE: Any = {
    "text.parse_math": False,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
    "savefig.facecolor": "white",
}
"""Everything about how the figures look that is not a strategy's own."""

WIDTH = 5.4
"""Inches of every figure: on a telephone one fills the page and can be read, on a screen two stand side by side."""


@dataclass(frozen=True)
class Look:
    """How a strategy is drawn."""

    colour: str
    marker: str


def looks(strategies: Sequence[str]) -> dict[str, Look]:
    """A colour and marker for each strategy; beyond seven, colours return with another marker."""
    chosen = {}
    others = [name for name in strategies if name != BASELINE]
    for index, name in enumerate(others):
        chosen[name] = Look(COLOURS[index % len(COLOURS)], MARKERS[index // len(COLOURS) % len(MARKERS)])
    if BASELINE in strategies:
        chosen[BASELINE] = Look(GREY, "o")
    return chosen


def _shown(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], dict[str, Look]]:
    """The settled runs of each strategy that has any, and the look of every strategy."""
    groups = by_strategy(runs)
    found = {name: settled(members) for name, members in groups.items()}
    return {name: members for name, members in found.items() if members}, looks(list(groups))


def drawn(draw: Callable[P, Figure | None]) -> Callable[P, bytes]:
    """Runs a drawing function in the report's style, whatever the user's own, and renders what it gives."""

    @functools.wraps(draw)
    def render(*args: P.args, **kwargs: P.kwargs) -> bytes:
        with matplotlib.style.context(["default", STYLE]):
            figure = draw(*args, **kwargs)
            if figure is None:
                return b""
            FigureCanvasAgg(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            return buffer.getvalue()

    return render


def settled_groups(runs: Sequence[Run]) -> tuple[dict[str, list[Run]], dict[str, Look]]:
    """The settled runs of each strategy that has any, and the look of every strategy."""
    groups = by_strategy(runs)
    found = {name: settled(members) for name, members in groups.items()}
    return {name: members for name, members in found.items() if members}, looks(list(groups))


def line(axes: Axes, points: Curve, look: Look, label: str, band: bool = False, **options: Any) -> None:
    """Mean line, with a band of one standard deviation over the seeds where it is asked for."""
    style = {"color": look.colour, "marker": look.marker, "clip_on": False, **options}
    axes.plot(points.x, points.mean, label=label, **style)
    low, high = np.subtract(points.mean, points.sd), np.add(points.mean, points.sd)
    if band and np.any(high > low):
        # A share has no values outside 0 and 1, whatever its mean and deviation.
        axes.fill_between(points.x, low.clip(0, 1), high.clip(0, 1), color=look.colour, alpha=0.15, linewidth=0)


def limit_labels(axes: Axes, labels: Iterable[float]) -> None:
    """An axis of numbers of labels: whole ticks, and nothing below 0."""
    found = list(labels)
    low, high = min(found, default=0), max(found, default=1)
    room = 0.04 * (high - low) or 1
    axes.set_xlim(max(0, low - room), high + room)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, steps=[1, 2, 5, 10]))


def limit_rounds(axes: Axes, rounds: Iterable[float]) -> None:
    """An axis of rounds: a tick a round, or every few, and none between two."""
    found = sorted({int(number) for number in rounds})
    if found:
        axes.set_xlim(found[0] - 0.5, found[-1] + 0.5)
        axes.xaxis.set_major_locator(FixedLocator(range(found[0], found[-1] + 1, 1 + (found[-1] - found[0]) // 12)))


def limit_share(axes: Axes, values: Iterable[float]) -> None:
    """An axis of shares: as much of 0 to 1 as the values take, at least a tenth, and nothing outside."""
    found = list(values)
    low, high = min(found, default=0.0), max(found, default=1.0)
    room = max(0.06 * (high - low), (0.1 - (high - low)) / 2, 0.005)
    low, high = low - room, high + room
    # Moved, not cut, where it would leave the range, so that a line along the edge is not hidden by the axis.
    shift = max(0.0, -low) - max(0.0, high - 1)
    low, high = max(0.0, low + shift), min(1.0, high + shift)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))


def drawable(text: str) -> str:
    """A name as the figures can write it: characters that no font of theirs has are left out for a full stop each."""
    missing = _not_in(font_manager.findfont(DEFAULT_FONT), text)
    for file in _fallbacks(missing):
        missing -= missing - _not_in(file, "".join(missing))
    return "".join("." if character in missing else character for character in text)


def fonts_for(texts: Iterable[str]) -> list[str]:
    """Families that together have the characters of some names, as far as this machine has any; the usual one first."""
    missing = _not_in(font_manager.findfont(DEFAULT_FONT), "".join(texts))
    names = [font_manager.get_font(file).family_name for file in _fallbacks(missing)]
    return [DEFAULT_FONT, *dict.fromkeys(names)]


def _not_in(file: str, text: str) -> set[str]:
    known = font_manager.get_font(file).get_charmap()
    return {character for character in text if ord(character) not in known and not character.isspace()}


def _fallbacks(missing: set[str]) -> list[str]:
    """Font files that have some of these characters, until all are had or the fonts have come to their end."""
    found, left = [], set(missing)
    for entry in font_manager.fontManager.ttflist if left else ():
        try:
            rest = _not_in(entry.fname, "".join(left))
        except (OSError, RuntimeError):  # a font file that is gone or broken
            continue
        if len(rest) < len(left):
            found.append(entry.fname)
            left = rest
        if not left:
            break
    return found
