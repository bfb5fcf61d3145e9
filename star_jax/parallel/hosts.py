"""Several processes as one program, as on hosts that share the chips of a pod: all run the same, the first one leads.

The leader alone reads and writes what a run keeps (`shared`), and what others must know goes through the coordination
service of `jax.distributed`, whose waits have an end (`parallel.cluster`). A single process does all of it by itself,
without any of this.

Data that are read must be the same everywhere (`check_same`); arrays that lie on several hosts are made whole on each
before they are fetched (`gathered`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.errors import ConfigError
from star_jax.parallel.cluster import SAID_AFTER, Cluster, after, give_up, say

T = TypeVar("T")
Tree = TypeVar("Tree")

_cluster: Cluster | None = None


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    patience: float = 300.0,
    silence: int = 60,
) -> None:
    """Makes this process one of several; before anything else is done with JAX.

    Args:
      coordinator_address: HOST:PORT of process 0, as it is reached by the others.
      num_processes, process_id: how many there are, and the number of this one. What is None is what
        `jax.distributed.initialize` detects.
      patience: seconds that the others are waited for.
      silence: seconds after which a process that has given no sign of life is gone, and JAX ends the others.

    Raises:
      ConfigError: what is not given cannot be detected, or what is given contradicts itself.
    """
    global _cluster
    here = socket.gethostname()
    of = f" of {num_processes}" if num_processes else ""
    at = f" at {coordinator_address}" if coordinator_address else ""
    advice = (
        f"star_jax: error: after {patience:,.0f} seconds not all processes have come together{at}; start the same "
        "command on every host, see that its port is open between them (JAX_COORDINATOR_PORT sets another one where it "
        "is detected), and raise --hosts.wait-seconds where hosts take longer to start"
    )
    waits = f"process {'' if process_id is None else process_id}{of} on {here} waits for the others{at}"
    with after(SAID_AFTER, lambda: say(waits)), after(patience, lambda: give_up(advice)):
        try:
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                initialization_timeout=int(patience) + 60,
                heartbeat_timeout_seconds=silence,
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(
                f"the processes of several hosts cannot come together ({' '.join(str(error).split())[:300]}); set "
                "--hosts.coordinator-address, --hosts.num-processes and --hosts.process-id"
            ) from error
    # JAX has no public name for its client, which Orbax and others take from there too.
    from jax._src.distributed import global_state

    _cluster = Cluster(global_state.client, global_state.process_id, global_state.num_processes, patience)


def several() -> Cluster | None:
    """The processes of this program; None where it is one."""
    return _cluster


def leads() -> bool:
    """Whether this process is the one that writes files and speaks to people."""
    return _cluster is None or _cluster.index == 0


def shared(function: Callable[[], T]) -> T:
    """Has the leader alone run a function; all processes return what it returned, or raise what it raised.

    Every process must come here, in the same order.

    Args:
      function: of which the others see nothing but what it returns: a value that can be pickled, without arrays that
        lie on several hosts.

    Example:
      >>> shared(lambda: 2 + 2)
      4
    """
    return function() if _cluster is None else _cluster.shared(function)


def check_same(facts: Mapping[str, str]) -> None:
    """Refuses to go on where a process works with something else than the leader.

    Args:
      facts: what it is, in words -> a text that stands for it.

    Raises:
      ConfigError: in all processes, naming what differs.
    """
    if _cluster is None:
        return
    found = _cluster.facts_of_all(facts)
    shared(lambda: compare(found))


def compare(found: Sequence[Mapping[str, str]]) -> None:
    """Refuses facts of processes that differ; see `check_same`."""
    for index, other in enumerate(found):
        differing = [name for name in {**found[0], **other} if found[0].get(name) != other.get(name)]
        if differing:
            raise ConfigError(
                f"process {index} has other {', '.join(differing[:5])} than process 0; give every host the same "
                "command, files and versions"
            )


def gathered(tree: Tree) -> Tree:
    """The arrays of a pytree, whole where they can be fetched: those that lie on several hosts are copied to each.

    All processes must come here. Where nothing lies elsewhere, nothing happens.
    """
    return jax.tree.map(lambda leaf: leaf if _is_here(leaf) else _copies(leaf.sharding.mesh)(leaf), tree)


def readable(tree: Tree) -> Tree:
    """The arrays of a pytree as this process can read them: of a single one as they are, else one by one as NumPy's.

    All processes must come here.
    """
    return tree if _cluster is None else jax.tree.map(lambda leaf: jax.device_get(gathered(leaf)), tree)


def _is_here(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


@cache
def _copies(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda leaf: leaf, out_shardings=NamedSharding(mesh, PartitionSpec()))
