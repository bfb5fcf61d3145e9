"""What every command ends in: an exit code, and one line on stderr for what the user can put right."""

import subprocess
import sys

import pytest

from star_jax.cli.guard import guarded_main
from star_jax.errors import ConfigError, DataError, LabelsNeeded, ScoreError


def test_guarded_main_passes_exit_codes_and_arguments_on(monkeypatch):
    assert guarded_main(len, ["a", "b", "c"]) == 3
    monkeypatch.setattr(sys, "argv", ["program", "a"])
    assert guarded_main(len) == 1


@pytest.mark.parametrize("error", [ConfigError("a.yaml:3: wrong\n  here"), DataError("a.jsonl:7: wrong\n  here")])
def test_guarded_main_turns_user_errors_into_one_line(capsys, error):
    def fail(argv):
        raise error

    assert guarded_main(fail, []) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("star_jax: error: a.")
    assert shown.endswith("wrong here\n")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "out", "err"),
    [
        (ScoreError("2 of 9 examples"), 2, "", "star_jax: error: 2 of 9 examples\n"),
        (FloatingPointError("the loss is nan"), 2, "", "star_jax: error: the loss is nan\n"),
        (LabelsNeeded("label these"), 3, "star_jax: label these\n", ""),
        (MemoryError("9 GB"), 2, "", "star_jax: error: out of memory (9 GB); lower the batch sizes\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GB\nof many lines"),
            2,
            "",
            "star_jax: error: out of device memory; lower the batch sizes or token limits (RESOURCE_EXHAUSTED: 9 GB)\n",
        ),
        (
            OSError(28, "No space left on device", "out/state"),
            2,
            "",
            "star_jax: error: No space left on device (out/state); what was finished is kept\n",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_kind_of_end_has_its_code_and_its_line(capsys, error, code, out, err):
    def fail(argv):
        raise error

    assert guarded_main(fail, []) == code
    assert capsys.readouterr() == (out, err)


@pytest.mark.parametrize("defect", [ValueError("a defect"), RuntimeError("a defect")])
def test_guarded_main_lets_a_defect_of_the_program_through(defect):
    def fail(argv):
        raise defect

    with pytest.raises(type(defect), match="a defect"):
        guarded_main(fail, [])


def test_guarded_main_explains_an_interruption(capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    assert guarded_main(interrupt, [], "interrupted; the same command goes on") == 130
    assert capsys.readouterr().err == "star_jax: interrupted; the same command goes on\n"


def test_guarded_main_is_silent_when_the_reader_leaves():
    program = (
        "import sys; from star_jax.cli.guard import guarded_main;"
        "sys.exit(guarded_main(lambda argv: [print('x' * 99) for _ in range(99999)] and 0, []))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
