"""The tensors of a stack of layers, read whole; or by each of several processes the rows that its devices will hold.

Rows in a file are outputs, along which kernels are split (`parallel.placement`), so that a part is a run of bytes.

Shapes: `L` layers, `I` input width, `O` output width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from star_jax.checkpoints.tensors import TensorReader


class Parts(NamedTuple):
    """How the tensors of one stack are read.

    Attributes:
      tensors: of the checkpoint.
      shapes: `O×I` of those that make one kernel, below each other.
      sharding: of the stack `L×I×O`.
    """

    tensors: TensorReader
    shapes: Sequence[tuple[int, ...]]
    sharding: Sharding | None

    def read(self, names: Sequence[str]) -> np.ndarray | jax.Array:
        """The tensors of these names as one, on the host; or in parts on the devices of all processes."""
        split = self._split()
        if split is None:
            found = [self.tensors.expect(name, shape) for name, shape in zip(names, self.shapes, strict=True)]
            return np.concatenate(found) if len(found) > 1 else found[0]
        had: dict[tuple[int | None, int | None], np.ndarray] = {}

        def rows(index: Any) -> np.ndarray:
            key = index[0].start, index[0].stop  # several devices of a process may hold the same
            if key not in had:
                had[key] = self.tensors.expect_rows(names, self.shapes, index[0])
                if had[key].dtype == np.float64:
                    had[key] = had[key].astype(np.float32)
            return had[key]

        shape = (sum(one[0] for one in self.shapes), *self.shapes[0][1:])
        return jax.make_array_from_callback(shape, split, rows)

    def _split(self) -> NamedSharding | None:
        """Where rows go that processes read apart from each other; None where each reads all."""
        place = self.sharding
        if not isinstance(place, NamedSharding) or place.is_fully_addressable or len(self.shapes[0]) < 2:
            return None
        axes = place.spec[-1] if len(place.spec) == 3 else None
        return None if axes is None else NamedSharding(place.mesh, PartitionSpec(axes))
