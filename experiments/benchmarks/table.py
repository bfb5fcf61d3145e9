"""From single timings to tables: medians, ratios, their spread, and fractions of the measured peak.

    python experiments/benchmarks/table.py FILE.json

prints the tables of a finished benchmark again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from sides import PROCESSES, side_of
from workload import TASKS

UNITS = {"generate": "new tokens/s"}
"""What the rate of a task counts, where that is not examples a second; a round counts those of its pool."""

REAL_UNITS = {"generate": "prompts/s"}
"""The same with a real model, whose answers end by themselves."""


class Comparison(NamedTuple):
    """star_jax and a peer on one task.

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


def peers_of(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What star_jax was compared with."""
    return [side for side in dict.fromkeys(run["side"] for run in runs) if side != "ours"]


def summary(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a dtype, peer (`against`) and task, and then one a peer and task with both in their best dtypes.

    Rates of tokens count every pass; `fraction` is achieved operations over the median of the peaks that the same
    process measured between the alternations.
    """
    runs, peaks = record["runs"], record["peaks"]
    tasks = [task for task in TASKS if any(run["task"] == task for run in runs)]
    dtypes = dict.fromkeys(run["dtype"] for run in runs)
    choices: list[str | None] = [*dtypes, None] if len(dtypes) > 1 else [*dtypes]  # None: the best of each side
    rows = []
    for dtype, peer, task in product(choices, peers_of(runs), tasks):
        places = {
            name: {"task": task, "side": side, "dtype": dtype or best_dtype(runs, task, side)}
            for name, side in (("ours", "ours"), ("peer", peer))
        }
        row: dict[str, Any] = {"task": task, "against": peer, "best": dtype is None}
        row |= compare(*(rates(runs, **place) for place in places.values()))._asdict()
        for name, place in places.items():
            row[f"{name}_dtype"] = place["dtype"]
            row[f"{name}_tokens"] = median(rates(runs, "tokens", **place).values())
            row[f"{name}_flops"] = median(rates(runs, "flops", **place).values())
            peak = _peak(peaks, side_of(place["side"]).process, place["dtype"])
            row[f"{name}_fraction"] = row[f"{name}_flops"] / peak
        rows.append(row)
    return rows


def _peak(peaks: Sequence[Mapping[str, Any]], process: str, dtype: str) -> float:
    return median(one["flops_per_second"] for one in peaks if one["side"] == process and one["dtype"] == dtype)


def agreement(task: str, ours: Mapping[str, Sequence[float]], peer: Mapping[str, Sequence[float]]) -> str:
    """How well a peer's results agree with star_jax's, in words; dropout draws differ, so that means are compared."""
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
    rows, peers = summary(record), peers_of(record["runs"])
    real = record.get("workload", {}).get("real")
    units = UNITS if real is None else REAL_UNITS
    if real is not None:
        yield f"{real}, rows of text"
        yield ""
    single, best = ([row for row in rows if row["best"] == flag] for flag in (False, True))
    for dtype in dict.fromkeys(row["ours_dtype"] for row in single):
        for peer in peers:
            yield from _block(dtype, peer, [row for row in single if row["ours_dtype"] == dtype], units)
            yield ""
        yield from _peak_lines(record["peaks"], dtype)
        yield ""
    for peer in peers if best else ():
        yield from _block("best dtype against best dtype", peer, best, units)
        yield ""
    for warm in record["warm_up"]:
        if warm["tried"]:
            tried = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in warm["tried"].items())
            yield f"{PROCESSES[side_of(warm['side']).process]}, {warm['dtype']}, {warm['task']}: tried {tried}"
    for one in record["agreement"]:
        yield f"results, {', '.join(value for name, value in one.items() if name != 'words')}: {one['words']}"


def _peak_lines(peaks: Sequence[Mapping[str, Any]], dtype: str) -> Iterator[str]:
    for process in dict.fromkeys(one["side"] for one in peaks):
        values = [one["flops_per_second"] for one in peaks if (one["side"], one["dtype"]) == (process, dtype)]
        spread = f"{min(values) / 1e9:,.0f} to {max(values) / 1e9:,.0f}"
        # Each peak is taken before its alternation; the memory is that of all that came before the last.
        most = max((one.get("most_bytes") or 0 for one in peaks if one["side"] == process), default=0)
        memory = f", at most {most / 1e9:.1f} GB in use" if most else ""
        yield f"  peak of {PROCESSES[process]}: {median(values) / 1e9:,.0f} GFLOP/s ({spread}){memory}"


def _block(title: str, peer: str, rows: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> Iterator[str]:
    """The rows of one peer; what sets it apart stands in the title."""
    rows = [row for row in rows if row["against"] == peer]
    words = f" ({side_of(peer).words})" if side_of(peer).words else ""
    yield f"{title}: star_jax / {side_of(peer).name}{words}"
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
            f"  {row['task']:<10}{rate:>21} {units.get(row['task'], 'examples/s'):<14}{row['ratio']:>6.2f}  "
            f"{spread:<14}{tokens:>17}{flops:>17}{fraction:>13}"
            + (f"  {row['ours_dtype']} / {row['peer_dtype']}" if row["best"] else "")
        )


if __name__ == "__main__":
    print("\n".join(tables(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
