"""How devices share the work and the model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from star_jax.config.checks import require

Devices = int | Literal["auto"]


@dataclass(frozen=True)
class MeshConfig:
    """The devices as a mesh of data x fsdp; the rows of a batch are spread over all of them.

    Results on meshes of as many devices are the same but for rounding, and a run goes on on another mesh.
    """

    data: Devices = "auto"
    """Groups of devices; each group has the whole model once. auto: as many as there are devices for."""
    fsdp: Devices = "auto"
    """Devices of a group, each of which keeps its part of the weights, the adapter and the moments. auto: the fewest
    that leave room for the rest; on a CPU 1, for its devices have one memory."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            require(value == "auto" or value >= 1, f"mesh.{entry.name} is {value}; it must be auto, or at least 1")
