"""Replaced weights change a folder's fingerprint, wherever in a file they lie, and however large it is."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from star_jax.checkpoints import fingerprints
from star_jax.checkpoints.fingerprints import fingerprint_like, folder_fingerprint, former_fingerprint

TENSORS = {"a": (4, 8), "b": (700, 1024), "c": (3,), "d": (300, 1024), "e": (2, 2)}
"""4 MB, most of it between the first and the last MiB."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one file of weights."""
    (tmp_path / "config.json").write_text("{}")
    save_file({name: np.ones(shape, np.float32) for name, shape in TENSORS.items()}, tmp_path / "model.safetensors")
    return tmp_path


def overwrite(file: Path, tensor: str, place: float, count: int | None = None) -> None:
    """Writes other bytes into a tensor, from a fraction of it on; all that follow, or `count` of them."""
    whole = bytearray(file.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    start, end = json.loads(whole[8 : 8 + length])[tensor]["data_offsets"]
    begin = 8 + length + start + int(place * (end - start))
    stop = 8 + length + end if count is None else begin + count
    whole[begin:stop] = bytes(byte ^ 0xFF for byte in whole[begin:stop])
    file.write_bytes(whole)


@pytest.mark.parametrize("tensor", TENSORS)
@pytest.mark.parametrize("most", [1 << 28, 1 << 16])
def test_a_tensor_that_was_replaced_is_noticed(
    folder: Path, tensor: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "READ_AT_MOST", most)
    before = folder_fingerprint(folder)
    overwrite(folder / "model.safetensors", tensor, 0)
    assert folder_fingerprint(folder) != before


@pytest.mark.parametrize("place", [0, 0.3, 0.5, 0.77, 0.999])
def test_of_what_is_read_whole_a_single_byte_is_noticed(folder: Path, place: float) -> None:
    before = folder_fingerprint(folder)
    overwrite(folder / "model.safetensors", "b", place, 1)
    assert folder_fingerprint(folder) != before


def test_no_more_is_read_than_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, smallest = 1 << 16, 1 << 12
    read, sha256 = [], hashlib.sha256
    monkeypatch.setattr(fingerprints, "READ_AT_MOST", most)

    class Counted:
        def __init__(self) -> None:
            self._hash = sha256()

        def update(self, data: bytes) -> None:
            read.append(len(data))
            self._hash.update(data)

        def hexdigest(self) -> str:
            return self._hash.hexdigest()

    monkeypatch.setattr(hashlib, "sha256", Counted)
    folder_fingerprint(folder)
    # The share of each tensor is rounded to whole pieces, and each has one at least.
    assert most / 2 < sum(read) <= most + (len(TENSORS) + 2) * max(smallest, most // (len(TENSORS) + 2)) + 200


def test_names_sizes_and_small_files_count(folder: Path) -> None:
    seen = {folder_fingerprint(folder)}
    (folder / "config.json").write_text('{"a": 1}')
    seen.add(folder_fingerprint(folder))
    (folder / "tokenizer.json").write_text("{}")
    seen.add(folder_fingerprint(folder))
    (folder / "notes.txt").write_text("not one of the model's files")
    seen.add(folder_fingerprint(folder))
    assert len(seen) == 3


def test_a_copy_has_the_same_one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(folder, copy)
    assert folder_fingerprint(copy) == folder_fingerprint(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\xff" * 20,
        (100).to_bytes(8, "little") + b"[1, 2]" + b" " * 94,
        (3).to_bytes(8, "little") + b"{}x12",
    ],
)
def test_a_file_that_is_no_safetensors_has_one_too(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    before = folder_fingerprint(folder)
    (folder / "model.safetensors").write_bytes(content + b"y")
    assert folder_fingerprint(folder) != before


def test_one_of_an_earlier_version_holds_as_long_as_it_did(folder: Path) -> None:
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        digest.update(f"{name} {len(content)} ".encode() + content[: 1 << 20])
        digest.update(content[-(1 << 20) :] if len(content) > 1 << 20 else b"")
    earlier, now = digest.hexdigest(), folder_fingerprint(folder)
    assert former_fingerprint(folder) == earlier
    assert fingerprint_like(earlier, folder, now) == earlier
    assert fingerprint_like(now, folder, now) == now
    assert fingerprint_like("0" * 64, folder, now) == now
    assert fingerprint_like(None, folder, now) == now
    overwrite(folder / "model.safetensors", "e", 0)
    assert fingerprint_like(earlier, folder, folder_fingerprint(folder)) == folder_fingerprint(folder)
