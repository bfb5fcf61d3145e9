"""One command with several others under it: what it prints, where it sends its arguments, and how it ends."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from star_jax import __version__
from star_jax.cli import evaluate, export, label, main, plan, predict, report, run, score, select
from star_jax.cli.guard import guarded_main
from star_jax.errors import ConfigError


def called(*argv):
    """A process of its own, in which `python -m star_jax` is what a person types."""
    command = [sys.executable, "-m", "star_jax", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version(capsys, flag):
    assert main.main([flag]) == 0
    assert capsys.readouterr() == (f"star_jax {__version__}\n", "")


@pytest.mark.parametrize("argv", [["--help"], ["-h"], []])
def test_help_names_every_command_and_what_it_does(capsys, argv):
    assert main.main(argv) == 0
    shown, error = capsys.readouterr()
    assert error == ""
    assert shown.startswith("usage: star-jax COMMAND [OPTIONS]\n")
    for name, said in main.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(said)}$", shown, flags=re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("name", ["runs", "--loop.rounds", "", "run.py", "main", "guard"])
def test_a_command_that_there_is_not_is_one_sentence(capsys, name):
    """Modules beside the commands are none."""
    assert main.main([name, "--help"]) == 2
    known = "run, plan, label, score, select, predict, evaluate, export, report"
    said = f"star_jax: error: there is no command {name!r}; choose from {known}\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("module", [run, plan, label, score, select, predict, evaluate, export, report])
def test_a_command_gets_what_stands_behind_its_name(monkeypatch, module):
    seen = []

    def command(argv):
        seen.append(list(argv))
        return 7

    monkeypatch.setattr(module, "main", command)
    name = module.__name__.rpartition(".")[2]
    assert main.main([name, "--flag", "value"]) == 7
    monkeypatch.setattr(sys, "argv", ["star-jax", name])
    with pytest.raises(SystemExit, match="7"):
        main.command()
    assert seen == [["--flag", "value"], []]


def test_a_command_ends_as_the_guard_says(monkeypatch, capsys):
    def fail(argv):
        raise ConfigError("no such setting")

    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "main", fail)
    assert main.main(["run"]) == 2
    assert capsys.readouterr().err == "star_jax: error: no such setting\n"
    for module, said in ((run, run.WHEN_INTERRUPTED), (score, score.WHEN_INTERRUPTED)):
        monkeypatch.setattr(module, "main", interrupt)
        assert main.main([module.__name__.rpartition(".")[2]]) == 130
        assert capsys.readouterr().err == f"star_jax: {said}\n"


def test_an_installation_has_the_program():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["star-jax"].partition(":")
    assert getattr(importlib.import_module(module), name) is main.command


def test_python_dash_m_is_the_same_program():
    done = called("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"star_jax {__version__}\n", "")
    done = called("rum")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("star_jax: error: there is no command 'rum'")


@pytest.mark.parametrize("name", ["run", "plan", "score", "predict", "evaluate", "export", "report"])
def test_every_command_explains_its_flags_under_each_of_its_names(name):
    """`star-jax NAME`, and `python -m star_jax.NAME`, by which scripts call it. JAX is not loaded for that.

    `star_jax.predict` and `star_jax.evaluate` are functions of the Python interface, so they are no modules; what came
    after the first release has one name.
    """
    shown = []
    names = [(["star_jax", name], f"star-jax {name}"), ([f"star_jax.{name}"], None)]
    for command, program in names if name not in ("plan", "predict", "evaluate") else names[:1]:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", *command, "--help"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        program = program or f"python -m star_jax.{name}"
        assert done.stdout.startswith(f"usage: {program} [-h]")
        boxed = [line for line in done.stdout.splitlines() if line[:1] in set("╭│╰")]
        assert max(map(len, boxed), default=0) <= 80  # tyro wraps neither the usage nor the description
        loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "star_jax.cli.guard" in loaded
        assert not loaded & {"jax", "flax", "transformers", "datasets", "matplotlib"}
        shown.append(set(re.findall(r"--[a-z][a-z.-]+", done.stdout)))
    assert shown[0] == shown[-1] >= {"--help"}


def test_strategies_of_plugins_are_named_where_one_is_not_found(tmp_path, registries, capsys):
    (tmp_path / "mine.py").write_text(
        "from star_jax.acquisition.strategy import register_strategy\n"
        "register_strategy('hardest_of_each_topic')(lambda key, pool, query: None)\n"
    )
    argv = ["--plugins", str(tmp_path / "mine.py"), "--output-dir", str(tmp_path / "out")]
    assert guarded_main(run.main, [*argv, "--strategies", "hardest_of_each"]) == 2
    error = capsys.readouterr().err
    assert "strategies names hardest_of_each, which does not exist (did you mean hardest_of_each_topic?)" in error
    assert ", uncertain_then_diverse, " in error
    assert error.endswith(", hardest_of_each_topic\n")
    assert not (tmp_path / "out").exists()
