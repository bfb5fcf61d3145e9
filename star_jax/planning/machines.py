"""Machines by name: how many chips they have, and what one of them holds, computes, reads and sends.

Peaks are those of the vendors' data sheets, dense: Google's pages on TPU v4, v5e, v5p and v6e, NVIDIA's data sheets of
A100, H100, H200 (SXM), L4 and L40S. What programs reach of them is `planning.time`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from star_jax.errors import ConfigError

GIGA, TERA, GIB = 10**9, 10**12, 2**30

HERE = ("here", "cpu")
"""Names of the machine that this is: `cpu` only where its devices are CPUs."""


class Chip(NamedTuple):
    """One device.

    Attributes:
      kind: of machine, as JAX names platforms.
      memory: bytes that programs may fill.
      flops: operations a second with bfloat16 factors.
      flops_float32: the same of full float32 products.
      bandwidth: bytes a second between memory and chip.
      link: bytes a second that it sends to the other chips of its machine, and gets from them at the same time.
    """

    kind: Literal["tpu", "gpu", "cpu"]
    memory: float
    flops: float
    flops_float32: float
    bandwidth: float
    link: float


class Machine(NamedTuple):
    """Several chips of one kind.

    Attributes:
      name: as it was asked for.
      chip: of what kind they are.
      devices: how many there are.
      topology: what JAX calls them when it compiles for a machine that is not there; None where it cannot.
    """

    name: str
    chip: Chip
    devices: int
    topology: str | None


def _tpu(gib: float, teraflops: float, gigabytes: float, link: float) -> Chip:
    """Float32 products are six of bfloat16. Of its memory XLA keeps a 64th to itself."""
    return Chip("tpu", gib * GIB * 63 / 64, teraflops * TERA, teraflops * TERA / 6, gigabytes * GIGA, link * GIGA)


def _gpu(gigabytes: float, teraflops: float, float32: float, bandwidth: float, link: float) -> Chip:
    """JAX takes three quarters of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""
    return Chip("gpu", 0.75 * gigabytes * GIGA, teraflops * TERA, float32 * TERA, bandwidth * GIGA, link * GIGA)


TPUS = {
    # Two of a torus' links at a time: a gather along one axis goes both ways round.
    "v4": _tpu(32, 275, 1200, 90),
    "v5e": _tpu(16, 197, 819, 90),
    "v5p": _tpu(95, 459, 2765, 180),
    "v6e": _tpu(32, 918, 1640, 180),
}
"""TPU -> chip. A slice of v5e or v6e is named after its chips, one of v4 or v5p after its cores, of which a chip has
two."""

GPUS = {
    "A100-40GB": _gpu(42.5, 312, 19.5, 1555, 300),
    "A100": _gpu(85.1, 312, 19.5, 2039, 300),
    "H100": _gpu(84.9, 989, 67, 3352, 450),
    "H200": _gpu(150.1, 989, 67, 4800, 450),
    "L4": _gpu(24.0, 121, 30.3, 300, 32),
    "L40S": _gpu(48.0, 362, 91.6, 864, 32),
}
"""GPU -> chip; of those with several memories, the larger."""

CORES_A_CHIP = {"v4": 2, "v5p": 2}

FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
"""Chips of a v5e or v6e slice -> their topology."""

DEEP = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
"""Chips of a v4 or v5p slice -> their topology."""

MOST_GPUS = 8
"""Of a machine: links between machines are slower, and are not planned for."""


def machine(name: str, here: Callable[[], Machine]) -> Machine:
    """The machine of a name: `v5e-8`, `v6e-16`, `H100`, `8xH100`, or `here`.

    Args:
      name: capitals do not matter.
      here: finds out what this machine is.

    Raises:
      ConfigError: there is none of that name; those that there are are listed.
    """
    asked = name.strip().lower().replace("\N{MULTIPLICATION SIGN}", "x")
    if asked in HERE:
        found = here()
        if asked == "here" or found.chip.kind == "cpu":
            return found._replace(name=asked)
    slices = re.fullmatch(r"(v\d[ep]?)-(\d+)", asked)
    if slices and slices[1] in TPUS:
        chips, rest = divmod(int(slices[2]), CORES_A_CHIP.get(slices[1], 1))
        shapes = DEEP if slices[1] in CORES_A_CHIP else FLAT
        if not rest and chips in shapes:
            return Machine(asked, TPUS[slices[1]], chips, f"{slices[1]}:{shapes[chips]}")
    cards = re.fullmatch(r"(?:(\d+)x)?(.+)", asked)
    known = {key.lower(): key for key in GPUS}
    if cards and cards[2] in known and 1 <= (count := int(cards[1] or 1)) <= MOST_GPUS:
        key = known[cards[2]]
        return Machine(f"{count}x{key}" if count > 1 else key, GPUS[key], count, f"1x1x{count}")
    raise ConfigError(f"--on is {name!r}, which is no machine that is known; choose {known_machines()}")


def known_machines() -> str:
    """The names of machines, in words."""
    slices = [f"{tpu}-N" for tpu in TPUS]
    sizes: Mapping[str, str] = {
        "N chips": ", ".join(map(str, FLAT)),
        "N cores": ", ".join(str(2 * chips) for chips in DEEP),
    }
    return (
        f"here; {', '.join(slices)} (v5e and v6e: N chips, {sizes['N chips']}; v4 and v5p: N cores, "
        f"{sizes['N cores']}); or {', '.join(GPUS)}, several as 2xH100 to {MOST_GPUS}xH100"
    )
