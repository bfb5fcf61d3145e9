"""A closed set of answers: star_jax beside Transformers with the prompt's cache reused, and beside an earlier star_jax.

    python experiments/benchmarks/closed_set.py --model FOLDER --rows test.jsonl --text text --label label \
        --prompt "…{{ text }}…: " --former ../star_jax-0

Each side has a process of its own and is asked in turn, so that whatever else the machine does falls on all alike; each
goes first in its turn. Prints rates, the ratio of their medians and its lowest and highest within an alternation, and
how far probabilities of the candidates differ; writes every timing as JSON. Compilation and the peer's choice between
its ways of batching are not in the timings.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
SIDES = ("ours", "former", "peer")
NAMES = {"ours": "star_jax", "former": "an earlier star_jax", "peer": "Transformers, the prompt's cache reused"}


def main() -> int:
    """The command, or the process of one side."""
    args = parse()
    if args.serve:
        serve(args.serve, json.loads(args.workload))
        return 0
    workload = {name: getattr(args, name) for name in ("model", "prompt", "text", "label", "batch", "samples", "mode")}
    workload |= {"rows": read_rows(args), "answers": answers_of(args)}
    sides = [side for side in SIDES if side != "former" or args.former]
    if args.samples:
        sides.remove("peer")
    processes = {side: Process(side, workload, args.former) for side in sides}
    for side, process in processes.items():
        warm = process.ask("warm")
        say(f"warm-up, {NAMES[side]}: {warm['seconds']:.1f} s {warm['variant']}")
    runs: list[dict[str, Any]] = []
    for number in range(args.alternations):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            runs.append({"alternation": number, "side": side, **processes[side].ask("run")})
            say(f"{number + 1}/{args.alternations}, {NAMES[side]}: {runs[-1]['seconds']:.2f} s")
    checks = {side: process.ask("check")["probabilities"] for side, process in processes.items()}
    for process in processes.values():
        process.close()
    lines = list(table(runs, checks, len(workload["rows"])))
    print("\n".join(lines))
    if args.out:
        record = {"command": sys.argv[1:], "date": datetime.now(UTC).isoformat(timespec="seconds"), "runs": runs}
        args.out.write_text(json.dumps(record | {"table": lines}, indent=1) + "\n", encoding="utf-8")
    return 0


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    parser.add_argument("--model", help="Hugging Face folder")
    parser.add_argument("--rows", type=Path, help="labelled examples, .jsonl or .csv")
    parser.add_argument("--text", default="text", help="its column of texts (text)")
    parser.add_argument("--label", default="label", help="its column of answers (label); _ is read as a blank")
    parser.add_argument("--prompt", help="template of the prompt, as format.prompt; \\n is a line break")
    parser.add_argument("--count", type=int, default=64, help="prompts, drawn at random (64)")
    parser.add_argument("--batch", type=int, default=16, help="scoring.batch_size (16)")
    parser.add_argument("--samples", type=int, default=0, help="Monte-Carlo dropout, without the peer (0 for none)")
    parser.add_argument("--mode", choices=("shared", "tied", "per_token"), default="shared", help="its masks (shared)")
    parser.add_argument("--alternations", type=int, default=5, help="timed runs of each side (5)")
    parser.add_argument("--former", type=Path, help="a checkout of an earlier star_jax; none where left out")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    if not args.serve and not (args.model and args.rows and args.prompt):
        parser.error("--model, --rows and --prompt say what is measured")
    return args


def all_rows(args: argparse.Namespace) -> list[dict[str, str]]:
    """Texts and answers of the file."""
    with args.rows.open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file)) if args.rows.suffix == ".csv" else [json.loads(line) for line in file]
    return [{args.text: row[args.text], args.label: row[args.label].replace("_", " ")} for row in found]


def read_rows(args: argparse.Namespace) -> list[dict[str, str]]:
    """The rows that are scored."""
    import numpy as np

    rows = all_rows(args)
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[: args.count].tolist()]


def answers_of(args: argparse.Namespace) -> list[str]:
    """The closed set: every answer in the file."""
    return sorted({row[args.label] for row in all_rows(args)})


class Process:
    """The process of a side."""

    def __init__(self, side: str, workload: dict[str, Any], former: Path | None) -> None:
        defaults = {"GOMP_SPINCOUNT": "10000", "HF_HUB_OFFLINE": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        tree = former if side == "former" else HERE.parents[2]
        environment = {**defaults, **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE), "--serve", side, "--workload", json.dumps(workload)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, operation: str) -> dict[str, Any]:
        """Sends a request and waits for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(operation + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process ended with exit code {self._process.wait()} at {operation}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve(side: str, workload: dict[str, Any]) -> None:
    """Answers requests until stdin is closed; what libraries print goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, str(HERE.parent))
    if side == "peer":
        from closed_set_peer import Bench
    else:
        from closed_set_ours import Bench
    bench = Bench(workload)
    for line in sys.stdin:
        began, used = time.perf_counter(), time.process_time()
        found = {"warm": bench.warm, "run": bench.run, "check": bench.check}[line.strip()]()
        spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}
        print(json.dumps({**spent, **found}), file=answers, flush=True)


def table(runs: list[dict[str, Any]], checks: dict[str, list[list[float]]], count: int) -> Any:
    """The lines to print."""
    seconds = {side: {run["alternation"]: run["seconds"] for run in runs if run["side"] == side} for side in checks}
    for side, times in seconds.items():
        yield f"{NAMES[side]:<42}{count / median(times.values()):>8.2f} prompts/s"
    for side in list(seconds)[1:]:
        each = [seconds[side][number] / ours for number, ours in seconds["ours"].items()]
        ratio = median(seconds[side].values()) / median(seconds["ours"].values())
        yield f"star_jax / {NAMES[side]}: {ratio:.2f}, in an alternation {min(each):.2f} to {max(each):.2f}"
        used = {name: median(run["cpu_seconds"] for run in runs if run["side"] == name) for name in ("ours", side)}
        yield f"  CPU time: {used[side] / used['ours']:.2f} (what counts where others use the machine)"
        pairs = zip(checks["ours"], checks[side], strict=True)
        worst = max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))
        yield f"  largest difference of a figure of the distribution over the answers: {worst:.1e}"


def say(text: str) -> None:
    """Tells whoever waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
