"""Some rows of a tensor in a file of safetensors: read by their place in it, and nothing else of the file.

The library of the format reads all of a tensor to give a slice of it.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from star_jax.errors import ConfigError

TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
}
TYPES["BF16"] = np.dtype(jnp.bfloat16)
"""Types of weights, as safetensors names them; all little-endian."""


class TensorRows:
    """A file whose header has been checked by the format's library.

    Args:
      file: of safetensors.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open("rb") as content:
            length = struct.unpack("<Q", content.read(8))[0]
            self._header = json.loads(content.read(length))
        self._begin = 8 + length

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """The rows of a tensor from `start` to before `stop`, in the type that it is stored in.

        Raises:
          ConfigError: the file ends before them.
        """
        entry = self._header[name]
        kind, row = TYPES[entry["dtype"]], tuple(entry["shape"][1:])
        size = kind.itemsize * math.prod(row)
        content = np.empty((stop - start) * size, np.uint8)
        offset = self._begin + entry["data_offsets"][0] + start * size
        with self._file.open("rb", buffering=0) as file:
            done = 0
            while done < content.size:
                # The system gives 2 GiB at a time at most.
                got = os.preadv(file.fileno(), [content.data[done : done + (1 << 30)]], offset + done)
                if not got:
                    raise ConfigError(f"{self._file} ends within the tensor {name}; fetch the whole file again")
                done += got
        return content.view(kind).reshape(stop - start, *row)
