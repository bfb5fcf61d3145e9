"""Settings of the process: JAX, logging, caches. Commands call this once; importing the package changes nothing."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

import jax

from star_jax.tracking.console import STAMP

CPU_DEVICES = 2
"""Devices that a CPU with as many cores shows: XLA runs attention of a decoding step, among others, on one core of a
device. More would keep more cores busy, but each holds the whole model."""


def memory_bytes() -> int:
    """Memory that arrays can be in: the device's, or on a CPU what the machine has or the process may use."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and stats.get("bytes_limit"):
        return int(stats["bytes_limit"])
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or one without a limit
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return whole


def configure_logging() -> None:
    """Warnings of this package as plain lines on stderr; those of libraries only when they are errors.

    Where stderr is no terminal, they begin with the time, as the lines between them do.
    """
    stamped = "%(message)s" if sys.stderr.isatty() else "%(asctime)s %(message)s"
    logging.basicConfig(format=stamped, datefmt=STAMP, level=logging.ERROR)
    logging.getLogger("star_jax").setLevel(logging.WARNING)
    # Else it says at every start that PyTorch is missing, which is as it should be.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def configure_jax() -> None:
    """True float32 products, two devices on a CPU, and compiled programs kept across processes.

    What the user has chosen by JAX's own environment variables, or has started already, stays.
    """
    # Accelerators multiply float32 in fewer bits unless told otherwise; bfloat16 products are not affected.
    jax.config.update("jax_default_matmul_precision", "highest")
    # Also the small programs, dozens of which run before the first batch: reading one back is a tenth of compiling it.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "star_jax" / "xla"))
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with suppress(RuntimeError):  # devices are there already
            jax.config.update("jax_num_cpu_devices", min(CPU_DEVICES, os.cpu_count() or 1))
