"""Runs every strategy of the package on the embedded benchmark: `python experiments/run_strategies.py OUTPUT_DIR`.

One process a strategy, so that its peak of memory is its own, all with the same seeds; what is finished is not run
again. Ends with the tables of compare_strategies.py, and for each strategy the seconds that queries took (scoring and
selection, compilation not counted) and the peak of memory. `rds_plus` and `sift` are told prompts of the skills that
the model has never seen, none of them a test prompt. `epig` is left out: the benchmark's answers are no closed set.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import compare_strategies

from star_jax.benchmarks.skills.generator import NEW_SKILLS, TESTED_SKILLS, balanced_labels
from star_jax.benchmarks.skills.task import SKILLS
from star_jax.registry import STRATEGIES
from star_jax.report.read import by_strategy, read_runs

LEFT_OUT = {"epig"}
TARGETS_A_SKILL, TARGETS_SEED = 5, 0
TARGETS, MEMORY = "targets.jsonl", "memory.json"


def names() -> list[str]:
    """Every strategy that free answers allow."""
    return [name for name in STRATEGIES.names() if name not in LEFT_OUT]


def write_targets(path: Path) -> None:
    """Prompts of each skill that the base model has never seen, outside the test set, without answers."""
    with path.open("w", encoding="utf-8") as file:
        for example in balanced_labels(TARGETS_SEED, TARGETS_A_SKILL * len(TESTED_SKILLS)):
            if SKILLS.group(example.prompt) in NEW_SKILLS:
                file.write(json.dumps({"id": example.id, "question": example.prompt.text}) + "\n")


def command(out: Path, regime: str, seeds: str, strategy: str, rest: Sequence[str]) -> list[str]:
    """What runs one strategy."""
    flags = {"output-dir": str(out), "data.regime": regime, "seeds": seeds, "strategies": strategy}
    flags["acquisition.target_file"] = str(out / TARGETS)
    given = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "star_jax.run", *given, *rest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--regime", default="R1")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--strategies", default=",".join(names()))
    args, rest = parser.parse_known_args()
    out: Path = args.directory
    out.mkdir(parents=True, exist_ok=True)
    write_targets(out / TARGETS)
    memory = json.loads((out / MEMORY).read_text()) if (out / MEMORY).is_file() else {}
    for strategy in args.strategies.split(","):
        process = subprocess.Popen(command(out, args.regime, args.seeds, strategy, rest))
        _, status, used = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"{strategy} ended with exit code {os.waitstatus_to_exitcode(status)}")
        memory[strategy] = max(memory.get(strategy, 0), used.ru_maxrss / 1024)
        (out / MEMORY).write_text(json.dumps(memory))
    strategies = by_strategy(read_runs(out))
    compare_strategies.table("accuracy over all tested skills", strategies, compare_strategies.over_all, "random")
    compare_strategies.table("accuracy over the new skills", strategies, compare_strategies.over_new_skills, "random")
    print(f"\n{'strategy':24}{'seconds of queries a run':>26}{'MiB at the peak':>18}")
    for name, runs in strategies.items():
        seconds = [sum(row.get("score_seconds") or 0 for row in run.rows) for run in runs if run.finished]
        mean = sum(seconds) / len(seconds) if seconds else float("nan")
        print(f"{name:24}{mean:26.1f}{memory.get(name, float('nan')):18.0f}")


if __name__ == "__main__":
    main()
