"""star_jax beside Transformers + PEFT: scoring, training, generation and a whole active-learning round.

    make bench
    python experiments/benchmarks/bench.py --device gpu
    python experiments/benchmarks/bench.py --model models/smollm2
    python experiments/benchmarks/bench.py --model models/smollm2 --tasks generate --rows gsm8k.jsonl \\
        --prompt '{{ question }}' --response '{{ answer }}' --prompt-limit 128 --response-limit 128

starts a process with JAX and one with torch and asks them in turn, so that whatever else the machine does falls on
all alike. The model is a random Llama on random tokens in the lengths of GSM8K, or a real one on rows of text, whose
answers end by themselves. Transformers + PEFT is timed in two ways, as guides show it and tuned. Prints tables and
writes every single timing as JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flops import work_of
from random_folders import write_folders
from real_folder import SHORT_ROWS, Rows, write_real_folder
from sides import PEERS, PROCESSES, SIDES
from table import agreement, summary, tables
from workers import Worker, busy_seconds, machine
from workload import TASKS, BenchError, Shape, Workload, read_lengths

from star_jax.runs.files import write_text_atomic

DEFAULTS = {
    "cpu": Workload(Shape(384, 6, 6, 6, 1024, 8192), "cpu", None, 64, 64, 32, 16, 16, 2048),
    "gpu": Workload(Shape(4096, 32, 32, 32, 11008, 32000), "gpu", None, 128, 64, 128, 64, 64, 8192),
}
"""Sizes where no flag says otherwise."""

REAL_TASKS = ("train", "generate")
"""What is timed of a real model where no flag says otherwise."""

REAL_SIZES = {"examples": 96, "prompts": 32, "pool": 64, "picks": 16, "test": 16, "rank": 16}
"""Sizes with a real model where no flag says otherwise: it is larger than the random one of a CPU."""

DTYPES = {"cpu": ("float32", "bfloat16"), "gpu": ("bfloat16",)}

SHAPE_FLAGS = ("width", "layers", "heads", "kv_heads", "mlp", "vocab")
SIZE_FLAGS = ("examples", "prompts", "new_tokens", "pool", "picks", "test", "samples", "rank")
BATCH_FLAGS = ("score_batch", "train_batch", "generate_batch", "peak_size")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 where it cannot do what it is asked to."""
    args = parse(arguments)
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{missing[0]} is not installed; pip install -e '.[parity]' brings the peer", file=sys.stderr)
        return 2
    try:
        workload = workload_of(args)
        out = args.out or Path("runs/benchmarks") / f"{args.device}-{datetime.now():%Y%m%d-%H%M%S}.json"
        _check_writable(out)
        record = run(workload, args, out)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(tables(record)))
    print(f"\n{quietness(record['runs'])}\nevery timing is in {out}")
    return 0


def _check_writable(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise BenchError(f"--out: {out} cannot be written: {error.strerror}; name another file") from error


def quietness(runs: Sequence[dict[str, Any]]) -> str:
    """How much of the machine the timed side had to share, in words."""
    seconds = sum(one["seconds"] for one in runs)
    text = f"on average the process that waited used {sum(one['idle_cpu_seconds'] for one in runs) / seconds:.3f} cores"
    if any(one["other_cpu_seconds"] is None for one in runs):
        return text
    worst = max(one["other_cpu_seconds"] / one["seconds"] for one in runs)
    return text + (
        f", other processes {sum(one['other_cpu_seconds'] for one in runs) / seconds:.2f} and at most {worst:.2f}; "
        "the spread is to be trusted only where that is little"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--alternations", type=int, default=5, help="timed runs of each task on each side (5)")
    parser.add_argument(
        "--tasks",
        type=_names,
        help=f"comma separated, of {','.join(TASKS)} (all; of a real model {','.join(REAL_TASKS)})",
    )
    parser.add_argument("--peers", type=_names, default=PEERS, help=f"comma separated, of {','.join(PEERS)} (both)")
    parser.add_argument("--dtypes", type=_names, help="comma separated, float32 and bfloat16 (on a GPU bfloat16)")
    parser.add_argument("--out", type=Path, help="JSON file (runs/benchmarks/DEVICE-TIME.json)")
    masks = {"choices": ("shared", "tied", "per_token"), "help": "star_jax's masks"}
    parser.add_argument("--scoring-dropout", default="shared", **masks)
    parser.add_argument("--training-dropout", default="per_token", **masks)
    parser.add_argument(
        "--in-memory-weights", action="store_true", help="random weights made by each process, as --device gpu does"
    )
    for flags in (SHAPE_FLAGS, SIZE_FLAGS, BATCH_FLAGS):
        for name in flags:
            values = [getattr(one.shape if flags is SHAPE_FLAGS else one, name) for one in DEFAULTS.values()]
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"({values[0]}; {values[1]} on a GPU)")
    parser.add_argument("--model", help="folder of a real Llama, on rows of text; random weights and tokens without")
    for name, value in SHORT_ROWS._asdict().items():
        flag = "rows" if name == "path" else name.replace("_", "-")
        parser.add_argument(f"--{flag}", type=type(value), help=f"with --model ({value!r})".replace("%", "%%"))
    args = parser.parse_args(arguments)
    args.dtypes = args.dtypes or (DTYPES[args.device] if args.model is None else ("float32",))
    args.tasks = args.tasks or (TASKS if args.model is None else REAL_TASKS)
    args.command = shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if arguments is None else arguments)])
    return args


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def workload_of(args: argparse.Namespace) -> Workload:
    """The workload that the flags ask for; its folder is set later.

    Raises:
      BenchError: they do not go together.
    """
    default = DEFAULTS[args.device]
    given = {name: value for name, value in vars(args).items() if value is not None}
    shape = replace(default.shape, **{name: given[name] for name in SHAPE_FLAGS if name in given})
    sizes = {name: given[name] for name in (*SIZE_FLAGS, *BATCH_FLAGS) if name in given}
    named = [f"--{name.replace('_', '-')}" for name in ("rows", *Rows._fields[1:]) if name in given]
    _require(args.model is not None or not named, f"{', '.join(named)}: rows of text go with --model")
    if args.model is not None:
        named = [f"--{name.replace('_', '-')}" for name in SHAPE_FLAGS if name in given]
        _require(not named, f"{', '.join(named)}: with --model, the shape is that of the model; leave it out")
        _require(not args.in_memory_weights, "--in-memory-weights: with --model, weights are read; leave it out")
        sizes = REAL_SIZES | sizes
    workload = replace(
        default, shape=shape, **sizes, scoring_dropout=args.scoring_dropout, training_dropout=args.training_dropout
    )
    most = len(read_lengths())
    _require(args.alternations >= 1, f"--alternations is {args.alternations}; it must be at least 1")
    for name, value in {**{name: getattr(shape, name) for name in SHAPE_FLAGS}, **sizes}.items():
        _require(value >= 1, f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    for name, known in (("tasks", TASKS), ("dtypes", ("float32", "bfloat16")), ("peers", PEERS)):
        named = getattr(args, name)
        unknown = [one for one in named if one not in known]
        _require(not unknown, f"--{name} names {', '.join(unknown)}; choose from {', '.join(known)}")
        _require(len({*named}) == len(named), f"--{name} is {','.join(named)}; each may be named once")
    _require(
        shape.width % (2 * shape.heads) == 0 and shape.heads % shape.kv_heads == 0,
        f"{shape.heads} heads and {shape.kv_heads} key-value heads do not cut a width of {shape.width} into even parts",
    )
    _require(shape.vocab > 256, f"--vocab is {shape.vocab}; it must be above 256")
    _require(workload.examples <= most, f"--examples is {workload.examples}; there are lengths for {most}")
    _require(workload.prompts <= most, f"--prompts is {workload.prompts}; there are lengths for {most}")
    _require(workload.pool + workload.test <= most, f"--pool and --test together must not be over {most}")
    _require(workload.picks <= workload.pool, f"--picks is {workload.picks}, and --pool only {workload.pool}")
    return workload


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BenchError(message)


def run(workload: Workload, args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Starts both processes, warms up the sides, times them in turn; the file is written after each alternation."""
    with ExitStack() as stack:
        workers = {one: stack.enter_context(Worker(one, name, args.device)) for one, name in PROCESSES.items()}
        if args.model is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            workload = write_real_folder(workload, args.model, rows_of(args), Path(folder))
        elif args.device == "cpu" and not args.in_memory_weights:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            write_folders(workload, Path(folder))
            workload = replace(workload, folder=folder)
        started = {name: worker.ask("start", workload=workload.to_dict()) for name, worker in workers.items()}
        _check_devices(args.device, started)
        record: dict[str, Any] = {
            "command": args.command,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine() | {f"{name}_gpu": one["accelerator"] for name, one in started.items()},
            "versions": {name: number for one in started.values() for name, number in one["versions"].items()},
            "imported": {name: one["imported"] for name, one in started.items()},
            # Where the random weights lie for the time of a run is of no interest; that they came from a folder is.
            "workload": workload.to_dict() | {"folder": workload.real or ("random" if workload.folder else None)},
            **{name: [] for name in ("warm_up", "agreement", "runs", "peaks")},
        }
        _warm_up(workers, workload, args, record)
        for number in range(args.alternations):
            _alternate(workers, workload, args, record, number)
            record["summary"] = summary(record)
            write_text_atomic(out, json.dumps(record, indent=1) + "\n")
    return record


def rows_of(args: argparse.Namespace) -> Rows:
    """The rows of text that the flags name."""
    given = {"path": args.rows} | {name: getattr(args, name) for name in Rows._fields[1:]}
    return SHORT_ROWS._replace(**{name: value for name, value in given.items() if value is not None})


def _check_devices(device: str, started: dict[str, dict[str, Any]]) -> None:
    libraries = {"ours": "JAX", "peer": "torch"}
    blind = [libraries[name] for name, one in started.items() if one["accelerator"] is None]
    if device == "gpu":
        who = "neither JAX nor torch sees a GPU" if len(blind) == 2 else f"{''.join(blind)} sees no GPU"
        _require(not blind, f"--device gpu: {who}; install its GPU build, or leave --device out to use the CPU")


def _ask(workers: Mapping[str, Worker], side: str, operation: str, **request: str) -> dict[str, Any]:
    """Asks the process of a side, which is told the way where it has several."""
    way = {} if SIDES[side].way is None else {"way": SIDES[side].way}
    return workers[SIDES[side].process].ask(operation, **request, **way)


def _warm_up(workers: dict[str, Worker], workload: Workload, args: argparse.Namespace, record: dict[str, Any]) -> None:
    """First calls, one side after the other; their results are compared where all have the same weights."""
    for dtype in args.dtypes:
        loaded = {name: worker.ask("load", dtype=dtype)["seconds"] for name, worker in workers.items()}
        for name, seconds in loaded.items():
            _say(f"warm-up, {dtype}, {PROCESSES[name]}: loaded in {seconds:.1f} s")
        checks: dict[str, dict[str, Any]] = {}
        for side in ("ours", *args.peers):
            for task in args.tasks:
                warm = _ask(workers, side, "warm", dtype=dtype, task=task)
                checks.setdefault(task, {})[side] = warm.pop("check")
                place = {"side": side, "dtype": dtype, "task": task, "load_seconds": loaded[SIDES[side].process]}
                record["warm_up"].append(place | warm)
                _say(f"warm-up, {dtype}, {SIDES[side].name}: {task} {warm['seconds']:.1f} s {warm['variant']}")
        if workload.folder is not None:
            record["agreement"] += [
                {"dtype": dtype, "task": task, "side": peer, "words": agreement(task, check["ours"], check[peer])}
                for task, check in checks.items()
                for peer in args.peers
            ]


def _alternate(
    workers: dict[str, Worker], workload: Workload, args: argparse.Namespace, record: dict[str, Any], number: int
) -> None:
    """One timed run of everything on all sides; each goes first in its turn."""
    sides = ("ours", *args.peers)
    for dtype in args.dtypes:
        for name, worker in workers.items():
            peak = worker.ask("peak", dtype=dtype)
            record["peaks"].append({"alternation": number, "dtype": dtype, "side": name, **peak})
        for place, task in enumerate(args.tasks):
            seconds: dict[str, float] = {}
            first = (number + place) % len(sides)
            for side in sides[first:] + sides[:first]:
                before = {name: worker.cpu_seconds() for name, worker in workers.items()}, busy_seconds()
                outcome = _ask(workers, side, "run", dtype=dtype, task=task)
                after = {name: worker.cpu_seconds() for name, worker in workers.items()}, busy_seconds()
                merged = outcome["merged"], outcome["merged_samples"]
                work = work_of(task, workload, merged, outcome.pop("check"))
                entry = {"alternation": number, "dtype": dtype, "task": task, "side": side, "first": not seconds}
                use = _cpu_use(SIDES[side].process, before, after)
                record["runs"].append(entry | outcome | work._asdict() | use)
                seconds[side] = outcome["seconds"]
            each = ", ".join(f"{SIDES[side].name} {seconds[side]:.2f} s" for side in sides)
            _say(f"{number + 1}/{args.alternations}, {dtype}, {task}: {each}")


Usage = tuple[dict[str, float], float | None]
"""CPU seconds by process, and of the whole machine."""


def _cpu_use(process: str, before: Usage, after: Usage) -> dict[str, float | None]:
    """CPU seconds of the process that waited, and of all that are none of the two."""
    used = {name: after[0][name] - before[0][name] for name in before[0]}
    others = None if before[1] is None or after[1] is None else max(0.0, after[1] - before[1] - sum(used.values()))
    return {"idle_cpu_seconds": sum(used.values()) - used[process], "other_cpu_seconds": others}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
