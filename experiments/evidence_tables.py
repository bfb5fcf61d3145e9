"""Every table of PROTOCOL.md from one file of raw results.

    python experiments/evidence_tables.py collect DIR@COMMIT ...     adds finished runs, and the commit they ran with
    python experiments/evidence_tables.py                            the tables, as Markdown

The file is experiments/results/skills.jsonl.xz: a line a run, with the rows of its metrics.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evidence import EXPERIMENTS
from scipy import stats

from star_jax.evaluation.curves import aubc_of_rounds
from star_jax.evaluation.statistics import mean_and_sd, paired_difference

RESULTS = Path(__file__).parent / "results" / "skills.jsonl.xz"
DRAWS = 10_000
"""Bootstrap samples of the seeds."""

Run = Mapping[str, Any]
Runs = Mapping[tuple[str, str], Mapping[int, Run]]
"""(experiment, strategy) -> seed -> run."""

BASE = "R1"
"""The experiment that ablations are compared with."""

WITHOUT_SAMPLES = ("dropout_off", "same_passes")
"""Experiments whose blend has no dropout samples, which is another strategy's name."""

DEFECTS = ("inert_base", "same_passes", "gold_scored", "wrong_length", "no_end")
"""What the released code gets wrong, one at a time."""

SELECTION, TRAINING = ("mc_1", "minmax", "linear"), ("decay_b_0", "penalty", "dropout_off")
"""Ablations of what is picked, and of what is trained."""


def collect(sources: Sequence[str]) -> int:
    """Adds all finished runs of folders of experiments/evidence.py, each with its commit; returns how many there are.

    A run that the file has already stays as it is: reported seeds run once.
    """
    lines: dict[tuple[str, str, int], str] = {}
    with lzma.open(RESULTS, "rt") as file:
        for line in file:
            run = json.loads(line)
            lines[run["experiment"], run["strategy"], run["seed"]] = line
    for source, experiment in itertools.product(sources, EXPERIMENTS):
        directory, commit = Path(source.rpartition("@")[0]), source.rpartition("@")[2]
        for summary in sorted((directory / experiment).glob("*/seed-*/summary.json")):
            said = json.loads(summary.read_text())
            rows = [json.loads(line) for line in (summary.parent / "metrics.jsonl").read_text().splitlines()]
            head = {"experiment": experiment, "strategy": said["strategy"], "seed": said["seed"], "commit": commit}
            line = json.dumps({**head, "seconds": said["seconds"]["total"], "rounds": rows}) + "\n"
            lines.setdefault((experiment, said["strategy"], said["seed"]), line)
    with lzma.open(RESULTS, "wt", preset=9) as file:
        file.writelines(lines.values())
    return len(lines)


def read() -> Runs:
    """The runs of the file, those of `R1_others` beside those of `R1`, whose settings they have."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    with lzma.open(RESULTS, "rt") as file:
        for line in file:
            run = json.loads(line)
            found.setdefault((run["experiment"].removesuffix("_others"), run["strategy"]), {})[run["seed"]] = run
    return found


def area(run: Run) -> float:
    """AUBC of accuracy."""
    return aubc_of_rounds(run["rounds"])


def last(name: str) -> Callable[[Run], float]:
    """A figure of the last round."""
    return lambda run: float(run["rounds"][-1][name])


def compared(ours: Mapping[int, Run], theirs: Mapping[int, Run], of: Callable[[Run], float]) -> dict[str, str] | None:
    """One line of a table: the paired difference over the seeds that both have; None where they share under two."""
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 2:
        return None
    first, second = ([of(runs[seed]) for seed in seeds] for runs in (ours, theirs))
    pair = paired_difference(first, second)
    assert pair.sd is not None
    assert pair.interval is not None
    differences = np.subtract(first, second)
    drawn = stats.bootstrap((differences,), np.mean, n_resamples=DRAWS, method="percentile", rng=0)
    low, high = drawn.confidence_interval
    return {
        "pairs": str(len(seeds)),
        "mean": f"{mean_and_sd(first)[0]:.3f}",
        "against": f"{mean_and_sd(second)[0]:.3f}",
        "difference": f"{pair.mean:+.4f}",
        "sd": f"{pair.sd:.4f}",
        "95 % after Student": f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}",
        "95 % by bootstrap": f"{low:+.4f} to {high:+.4f}",
        "p (t)": "-" if pair.t_p_value is None else f"{pair.t_p_value:.2g}",
        "every seed": "".join("+" if value > 0 else "-" if value < 0 else "0" for value in differences),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p values after Holm (1979), in the order given."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected.tolist()


def blend(runs: Runs, experiment: str) -> Mapping[int, Run]:
    """The runs of an experiment's STAR."""
    return runs.get((experiment, "entropy_dynamic" if experiment in WITHOUT_SAMPLES else "star"), {})


def table(title: str, rows: Mapping[str, Mapping[str, str] | None]) -> None:
    """Prints one, with the names of its rows in the first column."""
    there = {name: row for name, row in rows.items() if row is not None}
    print(f"\n### {title}\n")
    if not there:
        print("Not reached.")
        return
    columns = list(next(iter(there.values())))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in there.items():
        print(f"| {name} | " + " | ".join(row[column] for column in columns) + " |")
    if missing := rows.keys() - there.keys():
        print(f"\nNot reached: {', '.join(sorted(missing))}.")


def primary(runs: Runs) -> None:
    """The test that was announced, once all of its seeds have run; TREC's p counts as 1 until it has been run."""
    finished = runs.get((BASE, "star"), {}).keys() & runs.get((BASE, "random"), {}).keys()
    if missing := set(EXPERIMENTS[BASE].seeds) - finished:
        print(f"### Primary: AUBC, star against random, skills R1\n\nNot reached: {len(missing)} seeds have not run.")
        return
    row = compared(runs.get((BASE, "star"), {}), runs.get((BASE, "random"), {}), area)
    table("Primary: AUBC, star against random, skills R1", {"star": row})
    if row is not None:
        p = float(row["p (t)"])
        print(f"\nHolm over the two primary tests, TREC not run yet (p = 1): p = {holm([p, 1.0])[0]:.2g}.")


def secondary(runs: Runs) -> None:
    """Everything else; p values are not corrected."""
    for regime in ("R1", "R0", "R3"):
        here = {strategy: found for (experiment, strategy), found in runs.items() if experiment == regime}
        for against in ("random", "entropy", "star"):
            rows = {
                name: compared(found, here.get(against, {}), area) for name, found in here.items() if name != against
            }
            table(f"{regime}: AUBC, against {against}", rows)
    star, random = runs.get((BASE, "star"), {}), runs.get((BASE, "random"), {})
    ablations = (*SELECTION, *TRAINING)
    table(
        "Ablations of star: AUBC, against star as it is",
        {name: compared(blend(runs, name), star, area) for name in ablations},
    )
    table(
        "Defects of the released code, one at a time: AUBC of star, against star as it is",
        {name: compared(blend(runs, name), star, area) for name in DEFECTS},
    )
    table(
        "The same under random picks, where the defect is one of training: AUBC",
        {name: compared(runs.get((name, "random"), {}), random, area) for name in ("wrong_length", "no_end")},
    )
    table(
        "What remains of star against random under other trainings: AUBC",
        {name: compared(blend(runs, name), runs.get((name, "random"), {}), area) for name in TRAINING},
    )
    for figure in ("accuracy", "ece", "brier", "nll"):
        rows = {name: compared(runs.get((name, "random"), {}), random, last(figure)) for name in TRAINING}
        table(f"Regularisers on the same picks (random), last round: {figure}", rows)


def gap(runs: Runs) -> None:
    """AUROC of the two uncertainties against error on the test set, by round."""
    for regime in ("R1", "R0", "R3"):
        for strategy in ("random", "star"):
            found = list(runs.get((regime, strategy), {}).values())
            rows: dict[str, dict[str, str] | None] = {}
            for number in range(len(found[0]["rounds"]) if found else 0):
                full, base = ([run["rounds"][number][name] for run in found] for name in ("auroc", "auroc_base"))
                wins = sum(one > other for one, other in zip(full, base, strict=True))
                rows[f"{found[0]['rounds'][number]['labelled']} labels"] = {
                    "full model": f"{np.mean(full):.3f}",
                    "base model": f"{np.mean(base):.3f}",
                    "full is better on": f"{wins} of {len(found)} seeds",
                }
            table(f"{regime}: AUROC of uncertainty against error on the test set, runs of {strategy}", rows)


def hours(runs: Runs) -> None:
    """What the runs of each experiment took on two cores that did other work as well, and where they are from."""
    rows: dict[str, dict[str, str] | None] = {}
    for name in dict.fromkeys(experiment for experiment, _ in runs):
        own = [run for (experiment, _), found in runs.items() if experiment == name for run in found.values()]
        spent = sum(run["seconds"] for run in own) / 3600
        commits = ", ".join(sorted({run["commit"] for run in own}))
        rows[name] = {"runs": str(len(own)), "hours": f"{spent:.2f}", "commit": commits}
    table("Runs, hours, commits", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", nargs="?", choices=["collect", "tables"], default="tables")
    parser.add_argument("sources", nargs="*", metavar="DIR@COMMIT", help="what to collect from")
    args = parser.parse_args()
    if args.action == "collect":
        if not args.sources or not all("@" in source for source in args.sources):
            parser.error("collect needs the folders of the runs, each with @ and its commit behind it")
        print(f"{collect(args.sources)} runs in {RESULTS}")
        return
    runs = read()
    primary(runs)
    secondary(runs)
    gap(runs)
    hours(runs)


if __name__ == "__main__":
    main()
