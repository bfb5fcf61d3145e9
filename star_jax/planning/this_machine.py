"""The machine that this is: its chips by their name where that is known, else as products are measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from star_jax.environment import memory_bytes
from star_jax.parallel.mesh import by_rows, data_mesh, replicated
from star_jax.planning.machines import GPUS, TPUS, Chip, Machine

KNOWN = {
    "TPU v4": TPUS["v4"],
    "TPU v5 lite": TPUS["v5e"],
    "TPU v5p": TPUS["v5p"],
    "TPU v5": TPUS["v5p"],
    "TPU v6 lite": TPUS["v6e"],
    "A100-SXM4-40GB": GPUS["A100-40GB"],
    "A100-SXM4-80GB": GPUS["A100"],
    "H100 80GB HBM3": GPUS["H100"],
    "H200": GPUS["H200"],
    "NVIDIA L40S": GPUS["L40S"],
    "NVIDIA L4": GPUS["L4"],
}
"""What JAX calls a device, or a part of it -> its chip."""

WIDTH = 2048
"""Of the square products that are timed."""

FEW_ROWS, READ = 4, (4096, 8192)
"""Rows, and the matrix that each device multiplies them with to read it: as weights are read where answers are written.
Quicker ways to go through memory are of no use to a program that does that."""

TRIES = 8


def this_machine() -> Machine:
    """The local devices. Those of a CPU share its memory."""
    devices = jax.local_devices()
    kind, shared = devices[0].device_kind, devices[0].platform == "cpu"
    memory = memory_bytes() / (len(devices) if shared else 1)
    known = next((chip for name, chip in KNOWN.items() if name in kind), None)
    chip = known._replace(memory=memory) if known else _measured("cpu" if shared else "gpu", memory)
    return Machine("here", chip, len(devices), None)


def _measured(kind: Any, memory: float) -> Chip:
    """What a device reaches with all of them at work; what they send each other goes through memory."""
    rows = jnp.ones((WIDTH * data_mesh().size, WIDTH))
    narrow, wide = (
        2 * WIDTH**3 / _seconds(_product, jnp.ones((WIDTH, WIDTH), dtype), rows.astype(dtype))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    few = jnp.ones((FEW_ROWS * data_mesh().size, READ[0]))
    bandwidth = 4 * READ[0] * READ[1] / _seconds(_product, jnp.ones(READ), few)
    return Chip(kind, memory, narrow, wide, bandwidth, bandwidth)


@jax.jit
def _product(shared: Any, rows: Any) -> Any:
    return by_rows(lambda one, many: jnp.matmul(many, one, preferred_element_type=jnp.float32), shared, rows)


def _seconds(function: Callable[[Any, Any], Any], shared: Any, rows: Any) -> float:
    """The shortest of some tries, the first, which compiles, apart."""
    shared, taken = replicated(shared), []
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        jax.block_until_ready(function(shared, rows))
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
