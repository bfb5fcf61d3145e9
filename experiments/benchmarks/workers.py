"""The parent's end of the two processes: start them, ask them, and say in one sentence what became of one that died."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from workload import BenchError

STDERR_LINES = 30
"""Of what a process wrote before it died, so many lines are shown."""


class Worker:
    """The process of a module. Use as a context manager."""

    def __init__(self, module: str, name: str, device: str) -> None:
        self.name = name
        self._folder = tempfile.TemporaryDirectory()
        self._stderr = Path(self._folder.name) / "stderr"
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("child.py")), module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=_environment(device),
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()  # waits, and closes the pipes
        self._folder.cleanup()

    def ask(self, operation: str, **request: Any) -> dict[str, Any]:
        """Sends a request and waits for its answer.

        Raises:
          BenchError: the process has ended; what it wrote last is in the message.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"operation": operation, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(self._epitaph(operation, request))
        return json.loads(line)

    def cpu_seconds(self) -> float:
        """CPU time the process has used so far, all threads together."""
        return self.ask("cpu")["seconds"]

    def _epitaph(self, operation: str, request: dict[str, Any]) -> str:
        code = self._process.wait()
        written = self._stderr.read_text(errors="replace")
        lines = [line for line in written.splitlines() if line.strip()][-STDERR_LINES:]
        what = " ".join(str(request[name]) for name in ("way", "task", "dtype") if name in request)
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = lines[-1].strip() if lines else "nothing"
        shown = "\n".join(f"  {line}" for line in lines)
        return (
            f"the process of {self.name} {ended} at {operation} {what}".rstrip() + f"; its last words: {last}\n{shown}"
        )


def _environment(device: str) -> dict[str, str]:
    """What both processes run under; a variable that is set already stays."""
    # OpenMP's threads wait for one another spinning. For so short a time they are as quick as with the default on a
    # quiet machine, and several times quicker where another process wants a core now and then, which star_jax's
    # thread pool minds less: without this a busy machine would flatter star_jax.
    defaults = {"GOMP_SPINCOUNT": "10000", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    # `warm_up` is to hold what a first run takes, whoever ran before.
    defaults |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = defaults | dict(os.environ)
    if device == "cpu":
        return environment | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # Both models are in the GPU's memory at once, and each process is to get a good half of it. One GPU: star_jax would
    # take all there are, and the peers would not.
    chosen = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    return chosen | {"CUDA_VISIBLE_DEVICES": "0"} | environment


def busy_seconds() -> float | None:
    """CPU time that all processes of the machine have used since it started, all cores together; None off Linux."""
    listing = Path("/proc/stat")
    if not listing.is_file():
        return None
    user, nice, system, _, _, *rest = (int(field) for field in listing.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def machine() -> dict[str, Any]:
    """The processor, and the NVIDIA GPU with its driver where there is one."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": _gpu_name(),
    }


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    return asked.stdout.strip() or None
