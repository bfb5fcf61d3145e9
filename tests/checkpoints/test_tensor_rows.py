"""Rows of tensors, read by their place in a file."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from star_jax.checkpoints.tensor_rows import TYPES, TensorRows
from star_jax.checkpoints.tensors import TensorReader
from star_jax.errors import ConfigError


@pytest.fixture
def folder(tmp_path, rng):
    tensors = {kind: rng.normal(size=(7, 3, 2)).astype(dtype) for kind, dtype in TYPES.items()}
    tensors |= {"gate": rng.normal(size=(4, 3)), "up": rng.normal(size=(5, 3))}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, tensors


@pytest.mark.parametrize("kind", TYPES)
def test_rows_are_those_of_the_tensor(folder, kind):
    path, tensors = folder
    file = TensorRows(path / "model.safetensors")
    for start, stop in ((0, 7), (2, 5), (6, 7)):
        found = file.read(kind, start, stop)
        assert found.dtype == tensors[kind].dtype
        np.testing.assert_array_equal(found, tensors[kind][start:stop])


@pytest.mark.parametrize("rows", [slice(None), slice(0, 4), slice(3, 6), slice(5, 9)])
def test_rows_of_two_tensors_below_each_other(folder, rows):
    path, tensors = folder
    with TensorReader(path) as reader:
        found = reader.expect_rows(["gate", "up"], [(4, 3), (5, 3)], rows)
    np.testing.assert_array_equal(found, np.concatenate([tensors["gate"], tensors["up"]])[rows])


def test_what_is_read_is_checked(folder):
    path, tensors = folder
    tensors["up"][4, 1] = np.nan
    save_file(tensors, path / "model.safetensors")
    with TensorReader(path) as reader:
        assert reader.expect_rows(["up"], [(5, 3)], slice(0, 4)).shape == (4, 3)
        with pytest.raises(ConfigError, match="up holds values that are not finite"):
            reader.expect_rows(["up"], [(5, 3)], slice(4, 5))
        with pytest.raises(ConfigError, match="up has shape"):
            reader.expect_rows(["up"], [(5, 4)], slice(0, 1))


def test_a_file_that_ends_early_is_named(folder):
    path, _ = folder
    file = path / "model.safetensors"
    rows = TensorRows(file)
    file.write_bytes(file.read_bytes()[:-30])
    last = max(rows._header, key=lambda name: rows._header[name]["data_offsets"][1])
    with pytest.raises(ConfigError, match="ends within the tensor"):
        rows.read(last, 0, rows._header[last]["shape"][0])


def test_types_are_those_of_jax():
    assert TYPES["BF16"] == jnp.bfloat16
