"""Compares strategies over paired seeds: `python experiments/compare_strategies.py OUTPUT_DIR`.

Reads the run folders of an experiment on task `skills` and prints, for accuracy over all test items and over the
skills the base model has never seen, the area under the learning curve (AUBC) of every strategy and its paired
difference to --baseline (random): mean, standard deviation, 95 % interval, p of a paired t and a Wilcoxon test.
Nothing is corrected for the number of strategies looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from star_jax.benchmarks.skills.generator import NEW_SKILLS
from star_jax.evaluation.curves import aubc
from star_jax.evaluation.statistics import mean_and_sd, paired_difference
from star_jax.report.read import Run, by_strategy, read_runs


def over_all(row: dict) -> float:
    return row["accuracy"]


def over_new_skills(row: dict) -> float:
    return float(np.mean([row["group_accuracy"][name] for name in NEW_SKILLS]))


def areas(runs: list[Run], of: Callable[[dict], float]) -> dict[int, float]:
    return {run.seed: aubc(run.column("labelled"), [of(row) for row in run.rows]) for run in runs if run.finished}


def table(title: str, strategies: dict[str, list[Run]], of: Callable[[dict], float], baseline: str) -> None:
    print(
        f"\n{title}\n{'strategy':18}{'seeds':>6}{'AUBC':>8}{'sd':>7}{'difference':>12}{'sd':>7}{'95 % interval':>20}",
        end="",
    )
    print(f"{'p (t)':>9}{'p (W)':>9}{'wins':>8}")
    reference = areas(strategies[baseline], of)
    for name, runs in strategies.items():
        own = areas(runs, of)
        mean, sd = mean_and_sd(list(own.values()))
        line = f"{name:18}{len(own):6d}{mean:8.3f}{sd if sd is not None else float('nan'):7.3f}"
        seeds = sorted(own.keys() & reference.keys())
        if name != baseline and seeds:
            ours, theirs = [own[seed] for seed in seeds], [reference[seed] for seed in seeds]
            pair = paired_difference(ours, theirs)
            wins = sum(a > b for a, b in zip(ours, theirs, strict=True))
            line += f"{pair.mean:+12.3f}"
            if pair.sd is not None and pair.interval is not None:
                line += f"{pair.sd:7.3f}   [{pair.interval[0]:+.3f}, {pair.interval[1]:+.3f}]"
                line += "".join(
                    f"{p:9.3f}" if p is not None else f"{'-':>9}" for p in (pair.t_p_value, pair.wilcoxon_p_value)
                )
            line += f"{wins:5d}/{len(seeds)}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--baseline", default="random")
    args = parser.parse_args()
    strategies = by_strategy(read_runs(args.directory))
    table("accuracy over all tested skills", strategies, over_all, args.baseline)
    table("accuracy over the new skills", strategies, over_new_skills, args.baseline)


if __name__ == "__main__":
    main()
