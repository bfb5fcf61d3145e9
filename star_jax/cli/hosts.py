"""`star-jax run` as one of several processes: how they are found, and how all of them end when one does.

A process of several is two. The one that works may be ended by JAX at any moment, with a message for engineers, when
another host is gone; so the one that was started stays beside it, without JAX, and says last what has happened.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import logging
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star_jax.cli import flags
from star_jax.cli.guard import AGAIN, Ending, ending_of, stoppable
from star_jax.errors import ConfigError

VERDICT_SECONDS = 20
"""How much longer than a process may be silent an error of JAX waits for the news that one is gone, its usual cause."""

GONE = (
    "star_jax: error: another process of this run is gone or cannot be reached, and JAX has ended this one (its lines "
    "are above, and tell where it was JAX itself that failed); finished rounds and all labels are kept, and the same "
    "command on every host continues"
)

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Hosts:
    """Several processes as one run; the same command on every host.

    They are found on Cloud TPU, on SLURM, with Open MPI and on Kubernetes; elsewhere all three are given.
    """

    coordinator_address: str | None = None
    """HOST:PORT where process 0 listens, the same for all."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Number of this one, from 0."""
    wait_seconds: int = 300
    """How long one waits for the others until it gives up."""
    silence_seconds: int = 60
    """After how long without a sign of life a process is taken for gone, and the others end."""

    def __post_init__(self) -> None:
        if self.num_processes is not None and self.num_processes < 1:
            raise ConfigError(f"hosts.num_processes is {self.num_processes}; it must be at least 1")
        if self.process_id is not None and not 0 <= self.process_id < (self.num_processes or sys.maxsize):
            raise ConfigError(f"hosts.process_id is {self.process_id}; it must be from 0 to hosts.num_processes less 1")
        for name in ("wait_seconds", "silence_seconds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"hosts.{name} is {getattr(self, name)}; it must be at least 1")
        port = (self.coordinator_address or "HOST:1").rpartition(":")[2]
        if not port.isdecimal():
            raise ConfigError(f"hosts.coordinator_address is {self.coordinator_address}; it must be HOST:PORT")


def hosts_of(argv: Sequence[str], program: str, environment: Mapping[str, str] = os.environ) -> Hosts | None:
    """How this process finds the others; None where it is alone.

    Raises:
      ConfigError: a flag has a value that it cannot have.
    """
    if {"-h", "--help"} & set(argv):
        return None
    names = [entry.name for entry in dataclasses.fields(Hosts)]
    given = flags.given(program, argv, *(f"hosts.{name}" for name in names))
    said: dict[str, Any] = {name: given[f"hosts.{name}"] for name in names if given[f"hosts.{name}"] is not None}
    for name in said.keys() - {"coordinator_address"}:
        if not said[name].isdecimal():
            raise ConfigError(f"hosts.{name} is {said[name]!r}; it must be a whole number")
        said[name] = int(said[name])
    hosts = Hosts(**said)
    if hosts.num_processes is not None:
        return hosts if hosts.num_processes > 1 else None
    named = hosts.coordinator_address is not None or hosts.process_id is not None
    return hosts if named or in_a_cluster(environment) else None


def in_a_cluster(environment: Mapping[str, str]) -> bool:
    """Whether `jax.distributed.initialize` would find several processes, as far as is known without JAX.

    One process of a job, or a TPU machine that is no part of a larger one, is alone.
    """

    def number(name: str) -> int:
        value = environment.get(name, "")
        return int(value) if value.isdecimal() else 0

    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys()
    if (slurm and number("SLURM_NTASKS") > 1) or number("OMPI_COMM_WORLD_SIZE") > 1:
        return True
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return importlib.util.find_spec("kubernetes") is not None
    return _tpu_workers(environment) > 1


def _tpu_workers(environment: Mapping[str, str]) -> int:
    """Hosts of the TPU slice that this machine is one of; 0 where it has no TPU."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or importlib.util.find_spec("libtpu") is None:
        return 0
    slices = environment.get("MEGASCALE_NUM_SLICES", "1")
    if slices.isdecimal() and int(slices) > 1:
        return int(slices)
    listed = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
    if listed is None and any(Path("/dev").glob("accel[0-9]*")) | any(Path("/dev/vfio").glob("[0-9]*")):
        listed = _metadata(environment, "worker-network-endpoints")
    return len(listed.split(",")) if listed else 0


def _metadata(environment: Mapping[str, str], name: str) -> str | None:
    """What Google Cloud says of this machine; None elsewhere."""
    host = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{name}", headers={"Metadata-Flavor": "Google"}
    )
    with suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())
    return None


def run_as_one_of(hosts: Hosts, work: Callable[[], int], when_interrupted: str, when_terminated: str) -> int:
    """Joins the other processes and works with them; the exit code, which all have in common where one fails.

    Args:
      hosts: how the others are found.
      work: what all do; it returns an exit code.
      when_interrupted, when_terminated: what to say after Ctrl-C and after SIGTERM.
    """
    sys.stdout.flush()
    started = os.getpid()
    worker = os.fork()
    if worker:
        return _stay_beside(worker)
    _end_with(started)
    code = 1
    try:
        code = _work(hosts, work, when_interrupted, when_terminated)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        # Nothing of JAX is taken down in order, for that would wait for processes that are not there any more.
        os._exit(code)


def _work(hosts: Hosts, work: Callable[[], int], when_interrupted: str, when_terminated: str) -> int:
    """What the worker does: its exit code."""
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.parallel.hosts import join, leads, several

    def joined(_: Sequence[str]) -> int:
        configure_logging()
        configure_jax()
        known = hosts.coordinator_address, hosts.num_processes, hosts.process_id
        join(*known, patience=hosts.wait_seconds, silence=hosts.silence_seconds)
        if not leads():
            logging.getLogger("star_jax").setLevel(logging.ERROR)
        code, cluster = work(), several()
        if code == 0 and cluster is not None:
            cluster.leave()
        return code

    try:
        ending = Ending(stoppable(joined, ()), failed=False)
    except BaseException as error:
        ending = ending_of(error, when_interrupted, when_terminated) or _unexpected(error, hosts.silence_seconds)
    cluster = several()
    if cluster is not None and ending.code:
        cluster.begin_end()
    if leads() or ending.failed:
        ending.say()
    if cluster is not None and ending.code:
        cluster.tell_end(ending.code, ending.line if ending.failed else None)
    return ending.code


def _unexpected(error: BaseException, silence: int) -> Ending:
    """An error that nobody has words for: its traceback, and what the others say."""
    import traceback

    from star_jax.parallel.hosts import several

    cluster = several()
    where = "" if cluster is None else f"process {cluster.index} "
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        return Ending(code, f"star_jax: error: {where}could not read its flags")
    if cluster is not None and type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        # When a host is gone, what was under way with it fails at once, and JAX ends this process soon after.
        time.sleep(silence + VERDICT_SECONDS)
    traceback.print_exception(error)
    return Ending(1, f"star_jax: error: {where}failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _stay_beside(worker: int) -> int:
    """Waits for the worker, passes signals on, and says what has happened where it could not say so itself."""
    with suppress(OSError):  # it may have done so, or have ended
        os.setpgid(worker, worker)

    def forward(number: int, frame: Any) -> None:
        with suppress(ProcessLookupError):
            os.kill(worker, number)

    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    status = os.waitpid(worker, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if -code == signal.SIGABRT:
        print(GONE, file=sys.stderr)
        return AGAIN
    print(
        f"star_jax: error: this process was ended by {signal.Signals(-code).name}; finished rounds and all labels are "
        "kept, and the same command on every host continues",
        file=sys.stderr,
    )
    return 128 - code


def _end_with(parent: int) -> None:
    """In a group of its own, so that each signal comes once, by way of the parent; and gone when that is gone."""
    with suppress(OSError):
        os.setpgid(0, 0)
    if sys.platform == "linux":
        die_with_parent = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
