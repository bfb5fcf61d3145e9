"""Traces: written, also when what is traced fails, and refused in one sentence where they cannot be."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from star_jax.errors import ConfigError
from star_jax.tracking.profiling import profiled


def test_a_trace_is_written_also_when_what_is_traced_fails(tmp_path):
    said = []

    def fail():
        with profiled(str(tmp_path / "new" / "trace"), said.append):
            jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list((tmp_path / "new" / "trace").rglob("*.xplane.pb"))
    (trace,) = (tmp_path / "new" / "trace").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("Execute" in event.get("name", "") for event in events)
    assert len(said) == 1
    assert str(tmp_path / "new" / "trace") in said[0]


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_trace_that_cannot_be_written_is_said_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    said = []
    with profiled(str(tmp_path), said.append):
        pass
    (text,) = said
    assert str(tmp_path) in text
    assert "No space left on device" in text


def test_it_hides_no_error_of_what_is_traced(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    said = []
    with pytest.raises(ConfigError, match="the real one"), profiled(str(tmp_path), said.append):
        raise ConfigError("the real one")
    assert len(said) == 1


def test_nothing_is_traced_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.profiler, "start_trace", None)
    said = []
    with profiled(None, said.append):
        pass
    assert said == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--profile is .*/file/trace, which cannot be made"):
        profiled(str(tmp_path / "file" / "trace"), print).__enter__()
