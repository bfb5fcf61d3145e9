"""The command before it serves anything: what it refuses, and in which words."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from waiting import make_run

from star_jax.cli import label
from star_jax.cli.guard import guarded_main

WAITS = """
import sys, time
if "star_jax.run" in sys.orig_argv:
    print("waiting", flush=True)
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        sys.exit(130)
"""
"""Makes of `python -m star_jax.run` a process that does nothing until it is told to stop."""


@pytest.fixture
def waiting(tmp_path):
    folder = tmp_path / "out"
    make_run(folder, "star", 0)
    (folder / "labels.csv").write_text("id,prompt,response\na,what?,\n")
    return folder


def refused(capsys, *argv):
    assert guarded_main(label.main, list(map(str, argv))) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_where_there_is_nothing_to_label(waiting, tmp_path, capsys):
    assert "there is no folder" in refused(capsys, tmp_path / "nowhere")
    assert "holds no run" in refused(capsys, tmp_path)
    (waiting / "star" / "seed-0" / "summary.json").write_text("{}")
    assert "is finished; there is nothing to label" in refused(capsys, waiting)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--port", "70000"), "--port is 70000; it must be from 0 to 65535"),
        (("--pause", "-1"), "--pause is -1.0"),
        (("--pause", "nan"), "--pause is nan"),
        (("--cost-per-label", "-0.5"), "--cost-per-label is -0.5"),
        (("--guidelines", "nowhere.md"), "--guidelines is nowhere.md, which cannot be read (No such file"),
    ],
)
def test_flags_that_make_no_sense(waiting, capsys, flags, sentence):
    assert sentence in refused(capsys, waiting, *flags)


def test_a_table_that_cannot_be_read(waiting, capsys):
    (waiting / "labels.csv").write_text("id,prompt,response\na,what?,\na,again,\n")
    assert "labels.csv, line 3: id 'a' is already that of line 2" in refused(capsys, waiting)


def test_a_port_that_is_taken(waiting, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of this machine cannot be used" in refused(capsys, waiting, "--port", port)


def test_without_the_extra(waiting, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "star_jax.annotators.web.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'star_jax[web]'" in refused(capsys, waiting)


def test_guidelines_without_the_extra(waiting, tmp_path, capsys, monkeypatch):
    (tmp_path / "guidelines.md").write_text("# Be kind\n")
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    said = refused(capsys, waiting, "--guidelines", tmp_path / "guidelines.md")
    assert "needs the package markdown_it; install it with pip install 'star_jax[web]'" in said


def test_guidelines_are_rendered_and_their_html_is_not(tmp_path):
    file = tmp_path / "guidelines.md"
    file.write_text("# Be kind\n\n<script>alert(1)</script>\n\n| a | b |\n|---|---|\n| c | d |\n")
    shown = label._guidelines(str(file))
    assert "<h1>Be kind</h1>" in shown
    assert "<td>c</td>" in shown
    assert "<script>" not in shown
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text in UTF-8"):
        label._guidelines(str(file))


def test_ctrl_c_closes_the_page(waiting):
    command = [sys.executable, "-m", "star_jax", "label", str(waiting), "--port", "0", "--browser", "false"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        line = page.stdout.readline()
        assert line.startswith("1 example needs a label: http://127.0.0.1:")
        page.stdout.readline()
        page.send_signal(signal.SIGINT)
        try:
            assert page.wait(60) == 0
        finally:
            page.kill()
        closed = f"closed; every answer is in {waiting / 'labels.csv'}, and the same command goes on\n"
        assert page.stdout.read() == closed


def test_ctrl_c_stops_the_run_too_and_says_so(waiting, tmp_path):
    """A run that trains is asked to stop, once; here it is one that waits until then."""
    (tmp_path / "sitecustomize.py").write_text(WAITS)
    (waiting / "labels.csv").write_text("id,prompt,response\na,what?,this\n")
    command = [sys.executable, "-m", "star_jax", "label", str(waiting), "--port", "0", "--browser", "false"]
    log = waiting / "labelling.log"
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd())]))
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen([*command, "--pause", "0"], stdout=subprocess.PIPE, text=True, env=environment) as page:
        try:
            assert page.stdout.readline().startswith("0 examples need a label: ")
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (log.exists() and "waiting" in log.read_text()):
                time.sleep(0.05)
            page.send_signal(signal.SIGINT)
            assert page.wait(120) == 0
        finally:
            page.kill()
        said = page.stdout.read().splitlines()
        assert said[-1].startswith("closed; ")
        assert "the run stops after its step; Ctrl-C again does not wait for it" in said
