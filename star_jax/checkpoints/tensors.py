"""The tensors of a folder of safetensors, by name, one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.checkpoints.files import on_one_line, weight_files
from star_jax.checkpoints.tensor_rows import TYPES, TensorRows
from star_jax.errors import ConfigError

ROWS_AT_ONCE = 1 << 20
"""Entries of a tensor that are looked at at a time, where all of it at once would take as much memory again."""

_INSIDE = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.lm_head.": "lm_head."}
"""How names begin in a model that reads images too -> in one of text. The first is how today's modules are called, the
others how files have them."""

OF_IMAGES = tuple(f"{root}{part}." for root in ("", "model.") for part in ("vision_tower", "multi_modal_projector"))
"""How the names of tensors begin that only images need."""


class TensorReader:
    """The tensors of a folder, read one at a time, and never mapped into memory, where they would stay.

    Use as a context manager.

    Raises:
      ConfigError: a file cannot be read, or one that the index names is missing.
    """

    def __init__(self, folder: Path, *, text_only: bool = False) -> None:
        """Opens the files; with `text_only` they are those of a model that reads images too, and its decoder's tensors
        go by the names that they have in a model of text."""
        self.folder, self._text_only = folder, text_only
        self._stack = ExitStack()
        self._handles: dict[str, Any] = {}
        self._stored: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        self._rows: dict[Path, TensorRows] = {}
        for file in weight_files(folder):
            self._open(file)

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the type it is stored in."""
        return self._handles[name].get_tensor(self._stored[name])

    def _slice(self, name: str) -> Any:
        return self._handles[name].get_slice(self._stored[name])

    def expect(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor that must be there, in that shape.

        Raises:
          ConfigError: it is missing, quantised, of another shape, or holds values that are not finite.
        """
        self._check(name, shape)
        return self._finite(name, self.read(name))

    def expect_rows(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]], rows: slice) -> np.ndarray:
        """Rows of several tensors, as if they stood in one below each other; nothing else of them is read.

        Args:
          names: of the tensors, all of which must be there.
          shapes: of each.
          rows: of all of them together; without a step.

        Raises:
          ConfigError: as `expect`; of what is not read, nobody knows whether it is finite.
        """
        parts, begin = [], 0
        for name, shape in zip(names, shapes, strict=True):
            self._check(name, shape)
            start, stop, _ = rows.indices(sum(one[0] for one in shapes))
            start, stop = max(start - begin, 0), min(stop - begin, shape[0])
            if start < stop:
                file = self._files[name]
                if file not in self._rows:
                    self._rows[file] = TensorRows(file)
                parts.append(self._finite(name, self._rows[file].read(self._stored[name], start, stop)))
            begin += shape[0]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._handles:
            raise ConfigError(f"{self.folder}: the tensor {name} is missing")
        stored = self._slice(name).get_dtype()
        if stored not in TYPES:
            raise ConfigError(
                f"{self.folder}: the tensor {name} is stored as {stored}; quantised weights are not read, take the "
                "unquantised checkpoint and set model.quantization"
            )
        if self.shape(name) != shape:
            raise ConfigError(
                f"{self.folder}: the tensor {name} has shape {self.shape(name)}; config.json says {shape}"
            )

    def _finite(self, name: str, tensor: np.ndarray) -> np.ndarray:
        if not all_finite(tensor):
            raise ConfigError(
                f"{self.folder}: the tensor {name} holds values that are not finite; the file is damaged, or training "
                "went astray: take another checkpoint"
            )
        return tensor

    def same(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same numbers, read a few rows at a time."""
        if self.shape(first) != self.shape(second):
            return False
        one, other = (self._slice(name) for name in (first, second))
        rows, step = self.shape(first)[0], max(1, ROWS_AT_ONCE // max(1, math.prod(self.shape(first)[1:])))
        parts = (slice(start, min(start + step, rows)) for start in range(0, rows, step))
        return all(np.array_equal(one[part], other[part]) for part in parts)

    def _open(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handle = self._stack.enter_context(safe_open(file, framework="np", backend="pread"))
        except (SafetensorError, OSError) as error:
            self._stack.close()
            raise ConfigError(f"{file} cannot be read: {on_one_line(error)}; fetch the whole file again") from error
        for stored in handle.keys():  # noqa: SIM118 (it is no dictionary)
            if not (self._text_only and stored.startswith(OF_IMAGES)):
                name = text_name(stored) if self._text_only else stored
                self._handles[name], self._stored[name], self._files[name] = handle, stored, file


def text_name(stored: str) -> str:
    """Name of a decoder's tensor or module where there is no model of images around it."""
    for begins, instead in _INSIDE.items():
        if stored.startswith(begins):
            return instead + stored.removeprefix(begins)
    return stored


def all_finite(tensor: np.ndarray) -> bool:
    """Whether a tensor has neither infinities nor what is no number."""
    if tensor.ndim == 0 or not tensor.flags.c_contiguous:
        return bool(np.isfinite(tensor).all())
    if tensor.dtype.itemsize == 2:
        # All bits of the exponent set; numpy would turn each bfloat16 into a float32 to know.
        pattern = np.uint16(0x7F80 if tensor.dtype.name == "bfloat16" else 0x7C00)
        flat = tensor.reshape(-1).view(np.uint16)
        parts = (flat[start : start + ROWS_AT_ONCE] for start in range(0, flat.size, ROWS_AT_ONCE))
        return not any(((part & pattern) == pattern).any() for part in parts)
    flat = tensor.reshape(-1)
    parts = (flat[start : start + ROWS_AT_ONCE] for start in range(0, flat.size, ROWS_AT_ONCE))
    return all(np.isfinite(part).all() for part in parts)
