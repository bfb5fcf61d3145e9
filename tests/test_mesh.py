"""Meshes of eight devices: the same bits from scoring and training on all of them, and the same answers.

Belongs here: what compares meshes of one size; `ALL_MESHES=1 pytest tests/test_mesh.py` compares every kind of model on
every mesh. One device and eight are compared in `test_devices`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mesh_child import WORK

ONE_AXIS = "8x1"
"""The mesh on which every device has the whole model."""

PAIRS = [(kind, mesh) for kind, (meshes, _) in WORK.items() for mesh in meshes if mesh != ONE_AXIS]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a process with eight devices computed."""
    out = tmp_path_factory.mktemp("mesh") / "found.npz"
    told = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    # For what is no matter of the mesh: its programs are forgotten with the others when the mesh is changed.
    told |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    told |= {"JAX_COMPILATION_CACHE_DIR": str(out.with_name("programs"))}
    command = [sys.executable, str(Path(__file__).with_name("mesh_child.py")), str(out)]
    done = subprocess.run(command, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(np.load(out))


def of(found, kind, mesh, beginning):
    names = [name for name in found if name.startswith(f"{kind}/{mesh}/{beginning}")]
    assert names
    return {name.rpartition("/")[2]: found[name] for name in names}


@pytest.mark.parametrize(("kind", "mesh"), PAIRS)
def test_scoring_and_training_have_the_same_bits_on_every_mesh(found, kind, mesh):
    expected = {
        name: values
        for name, values in of(found, kind, ONE_AXIS, "").items()
        if not name.startswith(("written", "bytes")) and f"{kind}/{mesh}/{name}" in found
    }
    assert expected or WORK[kind][1] == "written"
    assert all(np.unique(values).size > 1 for name, values in expected.items() if "entropy" in name or "train" in name)
    for name, values in expected.items():
        assert np.isfinite(values).all(), name
        np.testing.assert_array_equal(found[f"{kind}/{mesh}/{name}"], values, err_msg=name)


@pytest.mark.parametrize(("kind", "mesh"), [pair for pair in PAIRS if "written" in WORK[pair[0]][1]])
def test_decoding_in_place_writes_the_same_tokens(found, kind, mesh):
    whole, split = of(found, kind, ONE_AXIS, "written"), of(found, kind, mesh, "written")
    assert np.unique(whole["written responses"]).size > 3
    np.testing.assert_array_equal(split.pop("written responses"), whole.pop("written responses"))
    for name, values in whole.items():
        np.testing.assert_allclose(split[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("kind", "mesh"), PAIRS)
def test_a_device_holds_its_part_and_what_is_whole(found, kind, mesh):
    split, rest, here = found[f"{kind}/{mesh}/bytes"].tolist()
    parts = int(mesh.partition("x")[2])
    print(f"{kind} {mesh}: {here} bytes on a device, {rest} whole, {split} / {parts} in parts")
    assert split > rest / 2
    assert here == rest + split // parts


def test_no_kernel_is_gathered_while_answers_are_written(found):
    counts = [values.tolist() for name, values in found.items() if name.endswith("traffic")]
    assert counts
    assert all(read == 7 and written == 0 for read, written in counts), counts
