"""The pages keep their promises: their Python runs, their commands are understood, and they name what there is."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import yaml

import star_jax
from star_jax.benchmarks.skills import generator as skills
from star_jax.cli.evaluate import EvaluateFlags
from star_jax.cli.export import parse_export
from star_jax.cli.flags import parse as read
from star_jax.cli.label import LabelFlags
from star_jax.cli.plan import Arguments as PlanFlags
from star_jax.cli.predict import PredictFlags
from star_jax.cli.run import parse_run, parse_with
from star_jax.cli.score_flags import parse_score
from star_jax.cli.select_flags import parse_select
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.registry import ANNOTATORS, STRATEGIES, TRACKERS, load_plugins

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")])
PLUGIN = DOCS / "examples" / "k_center.py"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def name_of(page):
    return str(page.relative_to(ROOT))


def with_blocks(language):
    return [page for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", with_blocks("python"), ids=name_of)
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    """In a folder that holds a pool without labels, and with a labelling function of the reader's own."""
    monkeypatch.chdir(tmp_path)
    with Path("pool.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question"])
        writer.writerows([example.prompt.text] for example in skills.pool_examples("R1", 0, 40))
    space = {"__name__": name_of(page), "my_label": skills.solve}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{name_of(page)}, block {number}", "exec"), space)


def commands(page):
    """The commands of the shell blocks, as lists of words."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.parametrize("page", with_blocks("bash"), ids=name_of)
def test_commands_are_understood(page, tmp_path, monkeypatch):
    """Read, and not run. A plug-in of the reader's own is the first Python block of the page."""
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "docs", "experiments"):
        Path(name).symlink_to(ROOT / name)
    for name in re.findall(r"--plugins (my_\w+\.py)", page.read_text()):
        Path(name).write_text(blocks(page, "python")[0])
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    for program, name, *argv in commands(page):
        if program == "star-jax":
            read_flags(name, argv)
        elif program == "make":
            assert name in targets, name
        elif program == "python":
            assert Path(name).is_file(), name


def read_flags(name, argv):
    if name == "run":
        config, _ = parse_run(argv)
        assert config.strategies == ("auto",) or all(one in STRATEGIES for one in config.strategies), argv
        assert all(one in TRACKERS for one in config.track), argv
        assert config.annotator == "auto" or config.annotator in ANNOTATORS, argv
    elif name in ("score", "select"):
        (parse_score if name == "score" else parse_select)(argv)
    elif name == "export":
        parse_export(argv)
    elif name in ("predict", "evaluate"):
        # Run folders and adapters of a page are the reader's own: the flags are read, and not what they name.
        read(name, PredictFlags if name == "predict" else EvaluateFlags, argv)
    elif name == "plan":
        parse_with(PlanFlags, argv, name)
    elif name == "label":
        read(name, LabelFlags, argv)
    else:
        assert name in ("report", "--help", "--version"), name


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=name_of)
def test_config_files_are_understood(page, tmp_path):
    for block in blocks(page, "yaml"):
        if "task:" not in block:
            assert isinstance(yaml.safe_load(block), dict)
            continue
        path = tmp_path / "config.yaml"
        path.write_text(block)
        config_from_mapping(*load_yaml(path))


def test_the_plugin_is_shown_as_it_is():
    assert PLUGIN.read_text() in blocks(DOCS / "write_a_strategy.md", "python")
    load_plugins([str(PLUGIN)])


def test_the_reference_has_every_public_name():
    text = (DOCS / "api.md").read_text()
    named = re.findall(r"^\.\. (?:auto|py:)\w+:: star_jax\.(\w+)(?:\(\))?$", text, flags=re.M)
    # SKIP is shown with the text that it has in its module.
    assert sorted([*named, "SKIP"]) == sorted(star_jax.__all__)
    assert "star_jax.config.data.SKIP" in text


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    listed = set(re.findall(r"^([a-z_/]+)$", index, flags=re.M))
    there = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in DOCS.rglob("*")
        if path.suffix in (".md", ".ipynb")
    }
    assert listed == {name for name in there if not name.startswith("_build")} - {"index"}


def test_every_strategy_is_described():
    built_in = re.findall(r"`([a-z_]+)`", (DOCS / "strategies.md").read_text())
    assert set(STRATEGIES._built_in) <= set(built_in)


def test_layers_are_the_folders_there_are():
    text = (DOCS / "how_it_is_built.md").read_text()
    named = re.findall(r"`([a-z_]+)/`", text.split("## One round")[0])
    folders = {path.parent.name for path in (ROOT / "star_jax").glob("*/__init__.py")}
    assert folders == set(named) - {"tasks"}
