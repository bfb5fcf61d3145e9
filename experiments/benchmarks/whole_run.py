"""Seconds of a whole run by phase in two checkouts:

    python experiments/benchmarks/whole_run.py BEFORE --model FOLDER --train pool.jsonl --test test.jsonl \\
        --prompt "{{ text }}" --response "{{ label }}"

The same configuration, strategy and seed in a checkout of an earlier commit and in this one, in turns, each in a
process of its own with an empty output folder. A model's configuration is given to both without the fields named by
--without, which the earlier commit may refuse. Prints the median seconds of each phase, their ratio with its spread,
and how many cores other processes used meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from workers import busy_seconds

HERE = Path(__file__).parents[2]
SUM = "_seconds"
"""How the names of phases end in metrics.jsonl."""

OTHERS = "cores of others"


def settings(args: argparse.Namespace, model: Path, pool: Path, test: Path) -> dict[str, Any]:
    """The configuration, in fields that all commits have."""
    return {
        "strategies": [args.strategy],
        "seeds": [args.seed],
        "model": {"path": str(model), "dtype": "float32"},
        "lora": {"rank": 16, "alpha": 32},
        "training": {"learning_rate": 5.0e-4, "epochs": 5, "batch_size": 8, "decay_b": 0.1},
        "loop": {"initial_labels": args.labels, "labels_per_round": args.labels, "rounds": args.rounds},
        "data": {
            "task": "generic",
            "train": str(pool),
            "test": str(test),
            "max_prompt_tokens": args.prompt_limit,
            "max_response_tokens": args.response_limit,
        },
        "format": {"prompt": args.prompt, "response": args.response},
    }


def first_rows(source: Path, count: int, target: Path) -> Path:
    """The first lines of a file of JSON lines."""
    target.write_text("".join(source.read_text().splitlines(keepends=True)[:count]))
    return target


def linked_model(source: Path, without: Sequence[str], target: Path) -> Path:
    """The folder of a model with fewer fields in its config.json; all else is linked."""
    target.mkdir()
    for file in source.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file.resolve())
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in without}))
    return target


def timed(root: Path, config: Path, out: Path) -> dict[str, float]:
    """One run: its seconds by phase, those of the whole process and of the processors, and what others used."""
    busy, cpu, start = busy_seconds(), child_seconds(), time.monotonic()
    command = [sys.executable, "-m", "star_jax.run", "--config", str(config), "--output-dir", str(out)]
    with out.with_suffix(".log").open("w") as log:
        here = {**os.environ, "PYTHONPATH": str(root)}
        code = subprocess.run(command, cwd=root, env=here, stdout=log, stderr=log, check=False).returncode
    if code:
        sys.exit(f"{root}: exit code {code}\n{out.with_suffix('.log').read_text()[-2000:]}")
    seconds, cpu = time.monotonic() - start, child_seconds() - cpu
    found: dict[str, float] = {}
    for file in out.glob("*/seed-*/metrics.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            for name, value in row.items():
                if name.endswith(SUM):
                    phase = name.removesuffix(SUM)
                    found[phase] = found.get(phase, 0.0) + (value or 0.0)
    others = 0.0 if busy is None else (busy_seconds() or 0.0) - busy - cpu
    return {**found, "whole process": seconds, "CPU seconds": cpu, OTHERS: others / seconds}


def child_seconds() -> float:
    """CPU time of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(before: Sequence[dict[str, float]], now: Sequence[dict[str, float]]) -> None:
    """Prints the table."""
    print("| phase | before, s | now, s | before / now | lowest and highest |\n|---|---|---|---|---|")
    for phase in dict.fromkeys(name for run in (*before, *now) for name in run if name != OTHERS):
        first, second = ([run.get(phase, 0.0) for run in runs] for runs in (before, now))
        ratios = [one / other for one, other in zip(first, second, strict=True) if other]
        middle, ends = (f"{median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}") if ratios else ("-", "-")
        print(f"| {phase} | {median(first):.1f} | {median(second):.1f} | {middle} | {ends} |")
    print(f"\nOther processes used {max(run[OTHERS] for run in (*before, *now)):.2f} cores at most.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the earlier commit")
    for name in ("--model", "--train", "--test"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--prompt", "--response"):
        parser.add_argument(name, required=True, help="Jinja over the fields of a row")
    parser.add_argument("--without", nargs="*", default=["unk_token_id"], help="fields of config.json to leave out")
    parser.add_argument("--strategy", default="star")
    sizes = {"seed": 0, "pool": 400, "tested": 100, "labels": 30, "rounds": 4, "alternations": 1}
    for name, value in {**sizes, "prompt-limit": 96, "response-limit": 6}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"({value})")
    args = parser.parse_args()
    before: list[dict[str, float]] = []
    now: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        pool, test = (
            first_rows(source, count, place / f"{role}.jsonl")
            for role, source, count in (("pool", args.train, args.pool), ("test", args.test, args.tested))
        )
        config = place / "config.yaml"
        config.write_text(
            yaml.safe_dump(settings(args, linked_model(args.model, args.without, place / "model"), pool, test))
        )
        for turn in range(args.alternations):
            for root, runs in ((args.before.resolve(), before), (HERE, now)):
                runs.append(timed(root, config, place / f"{turn}-{len(before)}-{len(now)}"))
                print(
                    root.name,
                    {phase: round(value, 1) for phase, value in runs[-1].items()},
                    file=sys.stderr,
                    flush=True,
                )
    show(before, now)


if __name__ == "__main__":
    main()
