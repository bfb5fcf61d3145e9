"""What the size of a pool costs `star-jax score`: python experiments/benchmarks/pool_size.py

For pools of several sizes, of distinct prompts with the lengths of GSM8K's, cut to what the embedded model takes, each
in a process of its own: examples a second and a second of the processors, without batches that waited for a compilation
(the second is for a machine that others use too); the most memory (VmHWM, reading included); seconds before the first
batch. Then the largest again: killed in the middle (SIGKILL), started again, and its output compared byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

RESPONSE_TOKENS = 6
LENGTHS = Path(__file__).parent / "gsm8k_lengths.json"
SAY_EVERY = 1.0
"""Seconds between two lines of a child that say how far it is."""


def write_pool(file: Path, size: int, longest: int) -> None:
    """Prompts of digits; the first ones spell the prompt's number, so that no two are the same."""
    rng = np.random.default_rng(0)
    known = [prompt for prompt, _ in json.loads(LENGTHS.read_text())["lengths"]]
    lengths = np.minimum(rng.choice(known, size), longest)
    with file.open("w") as out:
        for number, length in enumerate(lengths.tolist()):
            digits = [*f"{number:07d}", *map(str, rng.integers(0, 10, max(length - 8, 0)))]
            out.write(json.dumps({"id": f"p{number:07d}", "text": " ".join([*digits, "="])}) + "\n")


def peak_mib() -> float:
    """The most memory that this process has had, MiB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


class Pace:
    """How quick batches come, without those before which something was compiled.

    Attributes:
      first: when the first one came.
      examples, seconds, cpu_seconds: of those that count.
    """

    def __init__(self, compiled: Callable[[], float]) -> None:
        self.first, self.done, self.examples, self.seconds, self.cpu_seconds = 0.0, 0, 0, 0.0, 0.0
        self._compiled, self._said, self._before = compiled, 0.0, (0.0, 0.0, 0.0)

    def tick(self, count: int) -> None:
        """A batch has come."""
        now = (time.time(), time.process_time(), self._compiled())
        self.done += count
        if not self.first:
            self.first = now[0]
        elif now[2] == self._before[2]:
            self.examples += count
            self.seconds += now[0] - self._before[0]
            self.cpu_seconds += now[1] - self._before[1]
        self._before = now
        if now[0] - self._said > SAY_EVERY:
            print(json.dumps({"done": self.done}), flush=True)
            self._said = now[0]


def child(model: str, data: str, out: Path, longest: int) -> None:
    """Scores a file as the command does, and prints what it cost."""
    from star_jax.cli.score import score_file
    from star_jax.cli.score_flags import ScoreConfig
    from star_jax.config import FormatConfig
    from star_jax.environment import configure_jax
    from star_jax.runs.files import write_jsonl_atomic
    from star_jax.runs.partial_scores import PartialPass, PartialScores
    from star_jax.tracking.console import Progress
    from star_jax.tracking.timing import compile_seconds

    began, pace = float(os.environ["POOL_SIZE_BEGAN"]), Pace(compile_seconds)
    kept_examples = 0
    take = PartialPass.take

    class Watched(Progress):
        @contextmanager
        def task(self, name: str, total: int | None = None, unit: str = "steps") -> Iterator[Callable[[int], None]]:
            yield pace.tick

    def counted(self: Any, batch: Any) -> Any:
        nonlocal kept_examples
        found = take(self, batch)
        kept_examples += 0 if found is None else int(batch.row_mask.sum())
        return found

    PartialPass.take = counted  # type: ignore[method-assign]
    configure_jax()
    kept = out.with_name(f".{out.name}.scores")
    config = ScoreConfig(
        model=model,
        data=data,
        task="generic",
        out=str(out),
        format=FormatConfig(prompt="{{ text }}"),
        max_prompt_tokens=longest,
        max_response_tokens=RESPONSE_TOKENS,
    )
    rows = score_file(config, Watched("silent"), kept)
    write_jsonl_atomic(out, rows)
    PartialScores(kept, "").remove()
    figures = {
        "examples": len(rows),
        # Of a pass that goes on, the first batches are read.
        "examples_per_s": None if kept_examples else pace.examples / pace.seconds,
        "examples_per_cpu_s": None if kept_examples else pace.examples / pace.cpu_seconds,
        "first_batch_s": pace.first - began,
        "whole_s": time.time() - began,
        "peak_mib": peak_mib(),
        "kept": kept_examples,
    }
    print(json.dumps(figures), flush=True)


def run(arguments: argparse.Namespace, data: Path, out: Path, kill_after: int | None = None) -> dict[str, Any]:
    """One child; killed once it has scored so many. Its last line."""
    command = [sys.executable, __file__, "--child", str(data), str(out), "--model", arguments.model]
    command += ["--longest", str(arguments.longest)]
    environment = {**os.environ, "POOL_SIZE_BEGAN": str(time.time())}
    said: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                said = json.loads(line)
            if kill_after is not None and said.get("done", 0) >= kill_after:
                process.kill()
                break
    if kill_after is None and process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return said


def digest(file: Path) -> str:
    """Hash of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def main() -> None:
    """Prints a line a size, and one about the interruption."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--model", default="embedded:skills")
    parser.add_argument("--longest", type=int, default=58, help="tokens of a prompt that the model takes")
    parser.add_argument("--kill-at", type=float, default=0.4, help="share of the largest pool; 0 kills nothing")
    parser.add_argument("--child", nargs=2, metavar=("DATA", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.model, arguments.child[0], Path(arguments.child[1]), arguments.longest)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in arguments.sizes:
            data, out = folder / f"pool-{size}.jsonl", folder / f"scores-{size}.jsonl"
            write_pool(data, size, arguments.longest)
            print(json.dumps(run(arguments, data, out)), flush=True)
        if arguments.kill_at:
            again, after = folder / "again.jsonl", int(arguments.kill_at * size)
            killed = run(arguments, data, again, after)
            figures = run(arguments, data, again)
            same = digest(again) == digest(out)
            print(json.dumps({"killed_after": killed["done"], **figures, "same_output": same}), flush=True)
            sys.exit(not same)


if __name__ == "__main__":
    main()
