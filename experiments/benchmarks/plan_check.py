"""What `star-jax plan` says of this machine beside what programs really take: memory and seconds.

    python experiments/benchmarks/plan_check.py --model FOLDER

Each program runs in a process of its own, twice: the first time compiles it and keeps it, the second reads it back, so
that what the compiler itself takes is no part of the figures. Memory is the growth of what is resident from before the
weights are loaded; times are calibrated on scoring and judged on the others. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
KINDS = ("score", "train", "generate")
CODE = Path(__file__).resolve()


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE


class Peak:
    """The most that was resident while it was open."""

    def __enter__(self) -> Peak:
        self.bytes, self._open = resident(), True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._open:
            self.bytes = max(self.bytes, resident())
            time.sleep(0.01)

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()


def planned_here(args: argparse.Namespace):
    from star_jax.cli.plan import planned
    from star_jax.cli.run import parse_experiment
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.planning.compiled import Compiler, compiler_for
    from star_jax.planning.plan import make_plan
    from star_jax.planning.this_machine import this_machine

    configure_logging()
    configure_jax()
    flags = [
        *("--model.path", args.model, "--data.max-prompt-tokens", str(args.prompt)),
        *("--data.max-response-tokens", str(args.response), "--scoring.batch-size", str(args.rows)),
        *("--generation.batch-size", str(args.rows), "--training.batch-size", str(args.rows), *args.flags),
    ]
    config = parse_experiment(["--config", "configs/gsm8k.yaml", "--model.dtype", "float32", *flags])
    experiment = planned(config, (4096, 1024))
    machine = this_machine()
    compiler = compiler_for(machine)
    assert isinstance(compiler, Compiler)
    compiled = compiler.programs(config, lambda line: None) if args.kind is None else None
    return make_plan(experiment, machine, None, compiled)


def chosen(plan) -> dict:
    """The program of each kind that takes most."""
    entries = sorted(plan.entries, key=lambda entry: entry.held.total)
    return {entry.program.kind: entry for entry in entries if entry.program.kind in KINDS}


def run_one(args: argparse.Namespace) -> None:
    """One program in this process; prints growth of memory, and seconds of a batch."""
    from star_jax.checkpoints.hub import open_folder
    from star_jax.experiment.setup import load_base
    from star_jax.planning.trial import seconds_of_batch

    plan = planned_here(args)
    config, program = plan.experiment.config, chosen(plan)[args.kind].program
    before = resident()
    with Peak() as peak:
        model = load_base(config, open_folder(args.model))
        seconds = seconds_of_batch(program, model, config)
    print(json.dumps({"bytes": peak.bytes - before, "seconds": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--response", type=int, default=64, help="tokens of a response")
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="more flags of star-jax run, behind --")
    args = parser.parse_args()
    if args.kind is not None:
        run_one(args)
        return
    from star_jax.planning.trial import ideal_seconds

    plan = planned_here(args)
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        for kind in KINDS:
            for _ in range(2):
                command = [sys.executable, str(CODE), *sys.argv[1:], "--kind", kind]
                done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
    entries, devices = chosen(plan), plan.machine.devices
    calibration = found["score"]["seconds"] / ideal_seconds(plan, entries["score"].program)
    print(f"{devices} devices; calibrated on score: {calibration:.2f} times the time at the peaks")
    for kind in KINDS:
        entry, real = entries[kind], found[kind]
        said, formula = entry.bytes * devices, entry.held.total * devices
        seconds = calibration * ideal_seconds(plan, entry.program)
        grown, took = real["bytes"], real["seconds"]
        print(
            f"{kind}: {entry.program.name}, {entry.program.shape}\n"
            f"  GB: grew by {grown / 1e9:.2f}; compiler {said / 1e9:.2f}, {said / grown:.2f} of it; "
            f"formula {formula / 1e9:.2f}, {formula / grown:.2f} of it\n"
            f"  seconds a batch: took {took:.2f}; said {seconds:.2f}, {seconds / took:.2f} of it"
        )


if __name__ == "__main__":
    main()
