"""Atomic writes and strict reads."""

import errno
import json
import os
import stat

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from star_jax.errors import DataError
from star_jax.runs import files

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUES)
def test_plain_keeps_plain_values(value):
    assert files.plain(value) == value


@given(rows=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4))
def test_jsonl_comes_back(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    files.write_jsonl_atomic(path, rows)
    assert files.read_jsonl(path) == rows


def test_scalars_of_arrays_and_tuples_become_plain():
    value = {"a": (np.float32(0.5), np.int64(3), np.bool_(True)), "b": np.array(2.0), "c": np.str_("x")}
    written = files.plain(value)
    assert written == {"a": [0.5, 3, True], "b": 2.0, "c": "x"}
    assert [type(item) for item in [*written["a"], written["b"], written["c"]]] == [float, int, bool, float, str]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_numbers_that_are_not_finite_are_refused_by_name(bad, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("before")
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2\.groups\.rev\[1\] is -?(nan|inf)"):
        files.write_jsonl_atomic(path, [{"round": 0}, {"groups": {"rev": [0.5, bad]}}])
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_what_json_does_not_know_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match=r"x\.json\.labels is of type set"):
        files.write_json_atomic(tmp_path / "x.json", {"labels": {1, 2}})
    with pytest.raises(TypeError, match=r"x\.json\.labels has the key 3; keys must be strings"):
        files.write_json_atomic(tmp_path / "x.json", {"labels": {3: 1}})
    with pytest.raises(TypeError, match="of type ndarray"):
        files.plain(np.ones(2))


def test_a_failing_rename_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text_atomic(path, "old")

    def fail(source, target):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        files.write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_files_get_the_permissions_of_ordinary_files(tmp_path):
    (tmp_path / "ordinary").write_text("")
    files.write_text_atomic(tmp_path / "deep" / "atomic", "ä\n")
    mode = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
    assert stat.S_IMODE((tmp_path / "deep" / "atomic").stat().st_mode) == mode
    assert (tmp_path / "deep" / "atomic").read_bytes() == "ä\n".encode()


def test_yaml_keeps_the_order_of_keys(tmp_path):
    value = {"z": 1, "a": {"m": (1, 2), "b": 1.5e-4}}
    files.write_yaml_atomic(tmp_path / "c.yaml", value)
    assert list(files.read_yaml(tmp_path / "c.yaml")) == ["z", "a"]
    assert yaml.safe_load((tmp_path / "c.yaml").read_text()) == {"z": 1, "a": {"m": [1, 2], "b": 1.5e-4}}


def test_folders_are_replaced_whole(tmp_path):
    path = tmp_path / "adapter"

    def write(text):
        def writer(folder):
            (folder / "deep").mkdir()
            (folder / "deep" / "weights").write_text(text)

        return writer

    files.replace_folder_atomic(path, write("one"))
    (path / "stale").write_text("")
    files.replace_folder_atomic(path, write("two"))
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*")) == ["deep", "deep/weights"]
    assert (path / "deep" / "weights").read_text() == "two"

    def failing(folder):
        (folder / "half").write_text("")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        files.replace_folder_atomic(path, failing)
    assert (path / "deep" / "weights").read_text() == "two"
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_swap_cut_short_is_undone(tmp_path):
    for name, lost in (("adapter", True), ("other", False)):
        old = tmp_path / "run" / f".{name}.old"
        old.mkdir(parents=True)
        (old / "weights").write_text("old")
        if not lost:
            (tmp_path / "run" / name).mkdir()
    half = tmp_path / "run" / ".adapter.tmp"
    half.mkdir()
    (half / ".weights.77.tmp").write_text("")
    (tmp_path / "run" / ".metrics.jsonl.77.tmp").write_text("")
    files.clean(tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["adapter", "other"]
    assert (tmp_path / "run" / "adapter" / "weights").read_text() == "old"


def test_damaged_files_are_named_with_their_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"round": 0}) + "\n{\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2 is not valid JSON"):
        files.read_jsonl(path)
    path.write_text("[]\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1 is a list, not an object"):
        files.read_jsonl(path)
    with pytest.raises(DataError, match="line 1 holds a list and no keys"):
        files.read_yaml(path)
    path.write_text("a: [")
    with pytest.raises(DataError, match="is not valid YAML"):
        files.read_yaml(path)
    with pytest.raises(DataError, match="is not valid JSON"):
        files.read_json(path)
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


def test_a_full_disk_is_named_whoever_tells_of_it(tmp_path):
    full = os.strerror(errno.ENOSPC)
    for error in (ValueError(f"RESOURCE_EXHAUSTED: {full}"), RuntimeError(f"I/O error: {full} (os error 28)")):

        def writer(folder, error=error):
            raise error

        with pytest.raises(OSError, match=full) as caught:
            files.replace_folder_atomic(tmp_path / "adapter", writer)
        assert caught.value.filename == str(tmp_path / "adapter")
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="another"), files.full_disk_named(tmp_path):
        raise ValueError("another")


def test_a_link_stays_one_and_a_file_keeps_its_permissions(tmp_path):
    real = tmp_path / "elsewhere" / "real.txt"
    files.write_text_atomic(real, "old")
    real.chmod(0o600)
    link, dangling = tmp_path / "link.txt", tmp_path / "new.txt"
    link.symlink_to(real)
    dangling.symlink_to(tmp_path / "elsewhere" / "later.txt")
    for path in (link, dangling):
        files.check_writable(path)
        files.write_text_atomic(path, "new")
        assert path.is_symlink()
        assert path.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert sorted(os.listdir(real.parent)) == ["later.txt", "real.txt"]


def test_what_cannot_be_written_is_found_without_writing(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    for name in ("circle", "folder", "none/file", "x" * 300):
        with pytest.raises(OSError, match="Errno"):
            files.check_writable(tmp_path / name)
    files.check_writable(tmp_path / ("x" * 250))
    assert sorted(os.listdir(tmp_path)) == ["circle", "folder"]


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.check_writable(tmp_path / "pipe")
    files.write_text_atomic(tmp_path / "pipe", "text")
    assert os.read(reader, 100) == b"text"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)


@pytest.mark.parametrize("exists", [True, False])
def test_links_stay_and_what_they_lead_to_is_written(tmp_path, exists):
    """Of files and of folders, whatever their target was before; an existing file keeps its permissions."""
    (tmp_path / "there").mkdir()
    target, folder = tmp_path / "there" / "table.csv", tmp_path / "there" / "adapter"
    if exists:
        target.write_text("old")
        target.chmod(0o600)
        folder.mkdir()
        (folder / "old").touch()
    (tmp_path / "table.csv").symlink_to(target)
    (tmp_path / "adapter").symlink_to(folder)
    files.write_text_atomic(tmp_path / "table.csv", "new")
    files.replace_folder_atomic(tmp_path / "adapter", lambda path: (path / "new").touch())
    assert (tmp_path / "table.csv").is_symlink()
    assert (tmp_path / "adapter").is_symlink()
    assert target.read_text() == "new"
    assert not exists or target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["adapter", "table.csv"]
