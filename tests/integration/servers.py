"""Real servers on this machine, each a process of its own that is started and stopped here.

`make integration` installs them. LABEL_STUDIO names another program, TRANSFORMERS another `transformers`, SMOLLM2
another folder of the model that is served.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

ROOT = Path(__file__).parents[2]
LOGS = ROOT / "build" / "integration"
"""Where transcripts and what the servers print go, to be looked at."""

PATIENCE = 240.0
"""Seconds in which a server has to be ready; the first start of Label Studio makes its database."""

TOKEN = "0123456789abcdef0123456789abcdef01234567"
"""Of the account that the tests make."""


class Server(NamedTuple):
    """A server that is ready."""

    url: str


def program(variable: str, *places: Path) -> str:
    found = os.environ.get(variable) or next((str(place) for place in places if place.exists()), None)
    assert found, f"none of {', '.join(map(str, places))} is there; run make integration, or name one in {variable}"
    return found


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextlib.contextmanager
def running(name: str, command: Sequence[str], ready: str, **environment: str) -> Iterator[None]:
    """The process, once the address `ready` answers; stopped afterwards."""
    LOGS.mkdir(parents=True, exist_ok=True)
    with (LOGS / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        try:
            began = time.monotonic()
            while True:
                assert process.poll() is None, f"{name} ended with {process.returncode}, see {LOGS / name}.log"
                assert time.monotonic() - began < PATIENCE, f"{name} is not ready, see {LOGS / name}.log"
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(ready, timeout=5).is_success:
                        break
                time.sleep(0.5)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
