"""What a run ran on, for environment.json: versions, device, command, revision of the source."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from star_jax.runs.files import JsonObject

PACKAGES = (
    "star_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "chex",
    "numpy",
    "transformers",
    "datasets",
)
"""Packages whose versions can change a result, recorded in environment.json."""


def environment(device: str) -> JsonObject:
    """What a run ran on: Python, platform, package versions, device, command line, start time, source revision.

    Args:
      device: kind of accelerator, as the caller's array library names it.
    """
    versions: JsonObject = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": versions,
        "revision": source_revision(),
    }


def source_revision() -> str | None:
    """Git commit of the source, with `-dirty` where files were changed; None when not run from a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
