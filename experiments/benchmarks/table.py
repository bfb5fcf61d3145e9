"""From single timings to tables: medians, ratios, their spread, and fractions of the measured peak.

    python experiments/benchmarks/table.py FILE.json

prints the tables of a finished benchmark again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from workload import TASKS

SIDES = ("ours", "peer")
NAMES = {"ours": "star_jax", "peer": "Transformers + PEFT"}

UNITS = {"generate": "new tokens/s"}
"""What the rate of a task counts, where that is not examples a second; a round counts those of its pool."""


class Comparison(NamedTuple):
    """Two sides on one task.

    Attributes:
      ours, peer: median rates.
      ratio: of the medians.
      lowest, highest: of the ratios within the alternations.
    """

    ours: float
    peer: float
    ratio: float
    lowest: float
    highest: float


def compare(ours: Mapping[int, float], peer: Mapping[int, float]) -> Comparison:
    """Compares rates by alternation; those of the same alternation were taken one right after the other.

    Raises:
      ValueError: the alternations are not the same, or there are none.
    """
    if ours.keys() != peer.keys() or not ours:
        raise ValueError(f"alternations {sorted(ours)} of one side and {sorted(peer)} of the other cannot be compared")
    ratios = [ours[number] / peer[number] for number in ours]
    middle = median(ours.values()), median(peer.values())
    return Comparison(*middle, middle[0] / middle[1], min(ratios), max(ratios))


def rates(runs: Sequence[Mapping[str, Any]], figure: str = "units", **chosen: str) -> dict[int, float]:
    """Alternation -> `figure` a second, of the runs whose fields are `chosen`."""
    found = (run for run in runs if all(run[name] == value for name, value in chosen.items()))
    return {run["alternation"]: run[figure] / run["seconds"] for run in found}


def best_dtype(runs: Sequence[Mapping[str, Any]], task: str, side: str) -> str:
    """The dtype in which a side is fastest on a task, by its median."""
    dtypes = dict.fromkeys(run["dtype"] for run in runs)
    return max(dtypes, key=lambda dtype: median(rates(runs, task=task, side=side, dtype=dtype).values()))


def summary(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a dtype and task, and then one a task with each side in its best dtype.

    Rates of tokens count every pass; `fraction` is achieved operations over the median of the peaks that the same
    process measured between the alternations.
    """
    runs, peaks = record["runs"], record["peaks"]
    tasks = [task for task in TASKS if any(run["task"] == task for run in runs)]
    dtypes = dict.fromkeys(run["dtype"] for run in runs)
    pairs = [(task, (dtype, dtype)) for dtype in dtypes for task in tasks]
    if len(dtypes) > 1:
        pairs += [(task, tuple(best_dtype(runs, task, side) for side in SIDES)) for task in tasks]
    rows = []
    for number, (task, chosen) in enumerate(pairs):
        places = [{"task": task, "side": side, "dtype": dtype} for side, dtype in zip(SIDES, chosen, strict=True)]
        row: dict[str, Any] = {"task": task, "best": number >= len(dtypes) * len(tasks)}
        row |= compare(*(rates(runs, **place) for place in places))._asdict()
        for side, place in zip(SIDES, places, strict=True):
            row[f"{side}_dtype"] = place["dtype"]
            row[f"{side}_tokens"] = median(rates(runs, "tokens", **place).values())
            row[f"{side}_flops"] = median(rates(runs, "flops", **place).values())
            row[f"{side}_fraction"] = row[f"{side}_flops"] / _peak(peaks, side, place["dtype"])
        rows.append(row)
    return rows


def _peak(peaks: Sequence[Mapping[str, Any]], side: str, dtype: str) -> float:
    return median(one["flops_per_second"] for one in peaks if one["side"] == side and one["dtype"] == dtype)


def agreement(task: str, ours: Mapping[str, Sequence[float]], peer: Mapping[str, Sequence[float]]) -> str:
    """How well the two sides' results agree, in words; dropout draws differ, so that means are compared."""
    if task == "generate":
        same = sum(one == other for one, other in zip(ours["tokens"], peer["tokens"], strict=True))
        return f"{same} of {len(ours['tokens'])} tokens equal"
    if task == "round":
        return f"{len({*ours['picked']} & {*peer['picked']})} of {len(ours['picked'])} picks in common"
    if task == "train":
        return f"mean loss {ours['loss'][0]:.4f} and {peer['loss'][0]:.4f} nats a token"
    parts = []
    for name in ("nll", "entropy"):
        if task == "score-k1":
            worst = max(abs(a - b) / abs(b) for a, b in zip(ours[name], peer[name], strict=True))
            parts.append(f"largest relative difference of {name} {worst:.1e}")
        else:
            means = [sum(side[name]) / len(side[name]) for side in (ours, peer)]
            parts.append(f"mean {name} {means[0]:.2f} and {means[1]:.2f} nats")
    return ", ".join(parts)


def tables(record: Mapping[str, Any]) -> Iterator[str]:
    """The lines to print."""
    rows = summary(record)
    for dtype in dict.fromkeys(row["ours_dtype"] for row in rows):
        yield from _block(dtype, [row for row in rows if row["ours_dtype"] == dtype and not row["best"]])
        for side in SIDES:
            values = [
                one["flops_per_second"] for one in record["peaks"] if (one["side"], one["dtype"]) == (side, dtype)
            ]
            if values:
                spread = f"{min(values) / 1e9:,.0f} to {max(values) / 1e9:,.0f}"
                yield f"  peak of {NAMES[side]}: {median(values) / 1e9:,.0f} GFLOP/s ({spread})"
        yield ""
    best = [row for row in rows if row["best"]]
    if best:
        yield from _block("best dtype against best dtype", best)
        yield ""
    for warm in record["warm_up"]:
        if warm["tried"]:
            tried = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in warm["tried"].items())
            yield f"{NAMES[warm['side']]}, {warm['dtype']}, {warm['task']}: tried {tried}"
    for one in record["agreement"]:
        yield f"results, {one['dtype']}, {one['task']}: {one['words']}"


def _block(title: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield f"{title}  (each cell: star_jax / Transformers + PEFT)"
    yield (
        f"  {'task':<10}{'rate':>21} {'':<14}{'ratio':>6}  {'spread':<14}{'tokens/s':>17}"
        f"{'GFLOP/s':>17}{'of peak':>13}" + ("  dtypes" if rows[0]["best"] else "")
    )
    for row in rows:
        rate = f"{row['ours']:,.2f} / {row['peer']:,.2f}"
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
        tokens = f"{row['ours_tokens']:,.0f} / {row['peer_tokens']:,.0f}"
        flops = f"{row['ours_flops'] / 1e9:,.0f} / {row['peer_flops'] / 1e9:,.0f}"
        fraction = f"{row['ours_fraction']:.2f} / {row['peer_fraction']:.2f}"
        yield (
            f"  {row['task']:<10}{rate:>21} {UNITS.get(row['task'], 'examples/s'):<14}{row['ratio']:>6.2f}  "
            f"{spread:<14}{tokens:>17}{flops:>17}{fraction:>13}"
            + (f"  {row['ours_dtype']} / {row['peer_dtype']}" if row["best"] else "")
        )


if __name__ == "__main__":
    print("\n".join(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
