"""A process: reads requests from stdin, answers each with a line of JSON, and waits without using the CPU.

    python experiments/benchmarks/child.py ours|peer

is started by bench.py. What is timed is in ours.py and peer.py; only one of the two is ever imported here.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from typing import Any

from workload import Workload

PEAK_SECONDS = 0.5
"""At least so long are products repeated when the peak is measured."""


class WithoutTorch(PathFinder):
    """Finds every package but torch: Transformers, which reads a config for star_jax, would import it."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module's spec, or None for torch and its parts."""
        return None if fullname.split(".")[0] == "torch" else super().find_spec(fullname, path, target)


class Server:
    """Answers requests with one of the two modules; one that has several ways is told which is meant."""

    def __init__(self, name: str) -> None:
        if name == "ours":
            sys.meta_path = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
        self.module = importlib.import_module(name)
        self.workload: Workload | None = None
        self.benches: dict[str, Any] = {}

    def start(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Takes the workload; tells versions and the GPU, if there is one."""
        self.workload = Workload.from_dict(workload)
        foreign = {"jax", "torch"} & set(sys.modules)
        return {
            "versions": {name: version(name) for name in self.module.PACKAGES},
            "accelerator": self.module.accelerator(),
            "imported": sorted(foreign),
        }

    def load(self, dtype: str) -> dict[str, Any]:
        """Loads or makes the model in a dtype, beside those there are."""
        began = time.perf_counter()
        self.benches[dtype] = self.module.Bench(self.workload, dtype)
        return {"seconds": time.perf_counter() - began}

    def warm(self, dtype: str, task: str, **way: str) -> dict[str, Any]:
        """First calls of a task: compilation, and the choice between several ways of doing it."""
        began = time.perf_counter()
        tried = self.benches[dtype].choose(task, **way)
        outcome = self.benches[dtype].run(task, **way)._asdict()
        return outcome | {"seconds": time.perf_counter() - began, "tried": tried}

    def run(self, dtype: str, task: str, **way: str) -> dict[str, Any]:
        """One timed run."""
        return self.benches[dtype].run(task, **way)._asdict()

    def peak(self, dtype: str) -> dict[str, Any]:
        """Rate of a large matrix product, operations a second, and the most memory of a GPU in use so far."""
        multiply, size = self.benches[dtype].multiply, self.benches[dtype].workload.peak_size
        multiply(1)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < PEAK_SECONDS:
            multiply(4)
            done += 4
        rate = 2.0 * size**3 * done / (time.perf_counter() - began)
        return {"flops_per_second": rate, "most_bytes": self.module.most_bytes()}

    def cpu(self) -> dict[str, Any]:
        """CPU time of this process so far, all threads together."""
        return {"seconds": time.process_time()}


def main() -> None:
    """Serves requests until stdin is closed."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(sys.argv[1])
    operations: dict[str, Callable[..., dict[str, Any]]] = {
        name: getattr(server, name) for name in ("start", "load", "warm", "run", "peak", "cpu")
    }
    for line in sys.stdin:
        request = json.loads(line)
        answer = operations[request.pop("operation")](**request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
