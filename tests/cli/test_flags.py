"""Flags over files, and what a user sees after a mistake: exit code 2, a message, no traceback."""

import dataclasses
import os
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from star_jax.cli import run
from star_jax.cli.flags import HELP_WIDTH, without_former_names
from star_jax.cli.guard import guarded_main
from star_jax.cli.run import parse_experiment, parse_run
from star_jax.config import ExperimentConfig
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError
from star_jax.registry import ANNOTATORS, STRATEGIES, TASKS, TRACKERS

CONFIGS = Path(__file__).parents[2] / "configs"


def fields(config_type, prefix=""):
    """Dotted name -> declared type of every leaf."""
    for name, hint in typing.get_type_hints(config_type).items():
        if dataclasses.is_dataclass(hint):
            yield from fields(hint, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hint


def leaf(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def as_flag_value(value):
    """A field's value as a user would type it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value)


def test_no_arguments_run_the_quickstart():
    quickstart = config_from_mapping(*load_yaml(CONFIGS / "quickstart.yaml"))
    assert parse_experiment([]) == quickstart
    assert parse_run([]) == (quickstart, None)
    assert parse_run(["--profile", "traces"]) == (quickstart, "traces")
    assert quickstart.data.regime == "R1"
    assert {"star", "random"} <= set(quickstart.strategies)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_config_is_its_own_experiment_record(name):
    path = CONFIGS / name
    config = parse_experiment(["--config", str(path)])
    assert config.output_dir == f"runs/{path.stem}"
    head = path.read_text().split("\noutput_dir")[0]
    assert f"configs/{name}" in head or name == "quickstart.yaml"
    for word in ("Command", "Machine", "Time", "Expected"):
        assert f"# {word} " in head


@pytest.mark.parametrize("name", ["gsm8k", "boolq", "openbookqa"])
def test_paper_configs_have_the_papers_settings(name):
    config = parse_experiment(["--config", str(CONFIGS / f"{name}.yaml")])
    assert (config.loop.initial_labels, config.loop.labels_per_round, config.loop.budget) == (500, 500, 5000)
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (64, 16, 0.1)
    assert config.lora.targets == ("all-linear",)
    assert (config.training.learning_rate, config.training.epochs, config.training.batch_size) == (1.5e-4, 3, 8)
    assert (config.model.dtype, config.data.max_prompt_tokens, config.data.task) == ("bfloat16", 128, name)
    assert config.scoring.answers != "reference"


def test_every_field_can_be_set_by_a_flag_with_hyphens_or_underscores():
    other = parse_experiment(["--config", str(CONFIGS / "gsm8k.yaml")])
    names = [name for name, _ in fields(ExperimentConfig)]
    for spell in (lambda name: name, lambda name: name.replace("_", "-")):
        flags = [text for name in names for text in (f"--{spell(name)}", as_flag_value(leaf(other, name)))]
        assert parse_experiment(flags) == other
    assert parse_experiment([f"--{name}={as_flag_value(leaf(other, name))}" for name in names]) == other


def test_flags_that_scripts_rely_on():
    argv = (
        "--output-dir out --strategies star,pe --seeds 3,1 --model.path m --data.task boolq --data.train a.jsonl "
        "--data.test b.jsonl --data.pool-limit 40 --data.test-limit 10 --loop.initial-labels 4 "
        "--loop.labels-per-round 2 --loop.rounds 3 --scoring.answers candidates --scoring.mc-samples 5"
    )
    config = parse_experiment(argv.split())
    assert (config.output_dir, config.strategies, config.seeds) == ("out", ("star", "pe"), (3, 1))
    assert (config.model.path, config.data.task) == ("m", "boolq")
    assert (config.data.train, config.data.test) == ("a.jsonl", "b.jsonl")
    assert (config.data.pool_limit, config.data.test_limit) == (40, 10)
    assert (config.loop.initial_labels, config.loop.labels_per_round, config.loop.rounds) == (4, 2, 3)
    assert (config.scoring.answers, config.scoring.mc_samples) == ("candidates", 5)


def test_flags_replace_the_files_values_wherever_they_stand(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {replay: rows.jsonl, replay_rows: 4, gradient_clip: 2.0}\nseeds: [5, 6]")
    for argv in (["--config", str(path), "--seeds", "7"], ["--seeds=7", f"--config={path}"]):
        config = parse_experiment(argv)
        assert config.seeds == (7,)
        assert (config.training.replay, config.training.gradient_clip) == ("rows.jsonl", 2.0)
    argv = [
        "--config",
        str(path),
        "--training.replay",
        "none",
        "--training.replay-rows",
        "0",
        "--training.gradient-clip",
        "none",
    ]
    assert dataclasses.astuple(parse_experiment(argv).training)[-2:] == (None, 0)
    assert parse_experiment(argv).training.gradient_clip is None


def test_help_names_every_strategy_task_annotator_and_tracker(capsys):
    with pytest.raises(SystemExit):
        parse_experiment(["--help"])
    shown = set(re.findall(r"[a-z0-9_]+", capsys.readouterr().out))
    for registry in (STRATEGIES, TASKS, ANNOTATORS, TRACKERS):
        assert set(registry.names()) <= shown


def test_help_shows_every_flag_and_its_documentation(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_experiment(["--config", str(CONFIGS / "boolq.yaml"), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in ["config", *(name for name, _ in fields(ExperimentConfig))]:
        assert f"--{name.replace('_', '-')} " in shown
    for text in ("Longest response trained on", "a seed fixes pool draw", "PATH/TO/Llama-2-7b-hf"):
        assert text in " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--loop.round", "3"], "--loop.rounds"),
        (["--loop.rounds", "x"], "--loop.rounds"),
        (["--loop.rounds", "0"], "loop.rounds is 0; it must be at least 1"),
        (["--seeds", "-1"], "seeds must be from 0 to 4294967295"),
        (["--seeds", "0,4294967296"], "seeds must be from 0 to 4294967295"),
        (["--training.gradient-clip", "inf"], "training.gradient_clip is inf; it must be a finite number, or none"),
        (["--training.l2-b", "nan"], "training.l2_b is nan; it must be a finite number"),
        (["--acquisition.power", "inf"], "acquisition.power is inf; it must be a finite number"),
        (["--lora.dropout", "1e-7"], "lora.dropout is 1e-07; it must be 0 for none, or from 1e-06 to 0.999999"),
        (["--seeds", "0,,1"], "has an empty entry"),
        (["--seeds", "0,x"], "'x' is not a whole number"),
        (["--strategies", ""], "strategies is empty"),
        (["--strategies", "star,star"], "names one twice"),
        (["--lora.targets", ""], "lora.targets is empty"),
        (["--model.dtype", "float16"], "float16"),
        (["--training.replay", "none"], "training.replay and training.replay_rows go together"),
        (["--data.pool-limit", "many"], "--data.pool-limit"),
        (["--acquisition.schedule", "never"], "--acquisition.schedule"),
        (["--acquisition.arithmetic", "exact"], "--acquisition.arithmetic is 'exact'; it must be one of standard, rel"),
        (["--acquisition.arithmetic"], "--acquisition.arithmetic is ''; it must be one of standard, released"),
        (
            ["--acquisition.arithmetic", "released", "--acquisition.normaliser", "rank"],
            "acquisition.normaliser is rank, but --acquisition.arithmetic released scales the base by min-max",
        ),
        (["--plugins", "nowhere.py"], "plugins names nowhere.py; there is no such file"),
        (["--lora.rslora", "yes"], "'yes' is neither true nor false"),
        (["--format.match", "close"], "--format.match"),
        (["--format.group", "kind"], "format is the section of data.task generic, and data.task is skills"),
        (["--data.task", "generic", "--format.answers", "yes"], "format.answers names only one"),
        (["stray"], "stray"),
        (["--config"], "--config"),
        (["--conf", "x"], "--conf"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot read the configuration file"),
    ],
)
def test_a_bad_flag_or_value_exits_with_2_and_a_message(capsys, argv, message):
    def command(arguments):
        parse_experiment(arguments)
        return 0

    try:
        code = guarded_main(command, argv)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    shown = capsys.readouterr()
    assert message in " ".join(shown.err.replace("│", " ").split())
    assert shown.out == ""


def test_without_the_repository_a_config_must_be_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "DEFAULT_CONFIG", tmp_path / "configs" / "quickstart.yaml")
    monkeypatch.setattr(run, "_PACKAGE", tmp_path / "star_jax")
    with pytest.raises(ConfigError, match="pass --config FILE"):
        parse_experiment(["--loop.rounds", "3"])
    with pytest.raises(SystemExit, match="0"):
        parse_experiment(["--help"])
    assert "--config" in capsys.readouterr().out


RELEASED = "strategies: [entropy_dynamic]\nacquisition: {arithmetic: released}"
RANKS = "strategies: [entropy_dynamic]\nacquisition: {normaliser: rank}"


@pytest.mark.parametrize(
    ("text", "argv", "normaliser"),
    [
        ("{}", [], None),
        ("{}", ["--acquisition.arithmetic", "released"], "released"),
        ("{}", ["--acquisition.arithmetic=released"], "released"),
        ("{}", ["--acquisition.arithmetic", "released", "--acquisition.normaliser", "none"], "released"),
        ("{}", ["--acquisition.normaliser=released", "--acquisition.arithmetic=released"], "released"),
        ("{}", ["--acquisition.arithmetic", "standard"], None),
        ("{}", ["--acquisition.arithmetic", "standard", "--acquisition.normaliser", "zscore"], "zscore"),
        (RELEASED, [], "released"),
        (RELEASED, ["--acquisition.arithmetic", "standard"], None),
        (RELEASED, ["--acquisition.normaliser", "zscore"], "zscore"),
        (RANKS, ["--acquisition.arithmetic", "standard"], "rank"),
        (RANKS, ["--acquisition.arithmetic", "released", "--acquisition.normaliser", "none"], "released"),
    ],
)
def test_the_former_flag_of_the_released_arithmetic_is_todays_scale(tmp_path, text, argv, normaliser):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    config = parse_experiment(["--config", str(path), *argv, "--seeds", "3"])
    assert (config.acquisition.normaliser, config.seeds) == (normaliser, (3,))


def test_flags_without_former_names_stay_as_they_are():
    argv = ["--a=b=c", "--seeds", "1", "--acquisition.normaliser", "rank", "--lora.rslora"]
    assert without_former_names(argv, "released") == argv


PLUGIN = """
from star_jax.acquisition.strategy import register_strategy
from star_jax.registry import ANNOTATORS, TASKS, TRACKERS

register_strategy("from_a_file")(lambda key, pool, query: None)
TASKS.register("task_from_a_file", None)
ANNOTATORS.register("annotator_from_a_file", None)
TRACKERS.register("tracker_from_a_file", None)
"""


@pytest.fixture
def plugin(tmp_path, registries):
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path / "mine.py"


@pytest.mark.parametrize("named", ["by a flag", "in the file"])
def test_help_names_what_plugins_bring(plugin, named):
    """In a process of its own: what `--help` says of a flag is read once a process."""
    path = plugin.with_name("mine.yaml")
    path.write_text(f"plugins: [{plugin}]" if named == "in the file" else "{}")
    flags = ["--config", str(path), *([f"--plugins={plugin}"] if named == "by a flag" else []), "--help"]
    command = [sys.executable, "-m", "star_jax", "run", *flags]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("from_a_file", "task_from_a_file", "annotator_from_a_file", "tracker_from_a_file"):
        assert re.search(rf"\b{name}\b", shown)


def test_plugins_of_a_flag_replace_those_of_the_file(plugin):
    path = plugin.with_name("mine.yaml")
    path.write_text("plugins: [nowhere.py]")
    config = parse_experiment(["--config", str(path), "--plugins", str(plugin), "--strategies", "from_a_file"])
    assert (config.plugins, config.strategies) == ((str(plugin),), ("from_a_file",))
    assert parse_experiment(["--config", str(path), "--plugins", ""]).plugins == ()


@pytest.mark.parametrize("columns", ["20", "200", None])
def test_help_is_as_wide_as_a_page_whatever_the_terminal(monkeypatch, capsys, columns):
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit, match="0"):
        parse_experiment(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert 60 < max(map(len, lines)) <= HELP_WIDTH == 80
    assert os.environ.get("COLUMNS") == columns


def test_help_shows_the_files_values(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("loop: {rounds: 1234567}\nstrategies: [margin, bald]\ntraining: {gradient_clip: none}")
    with pytest.raises(SystemExit, match="0"):
        parse_experiment(["--config", str(path), "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 1234567)" in shown
    assert "(default: margin,bald)" in shown
    assert re.search(r"--training.gradient-clip .*? \(default: none\)", shown)


@pytest.mark.parametrize(
    ("argv", "value"),
    [([], True), (["true"], True), (["False"], False), (["--seeds", "1"], True)],
)
def test_switches_are_flags_and_take_a_value(argv, value):
    quickstart = parse_experiment(["--lora.rslora", *argv])
    assert quickstart.lora.rslora is value


def test_parsing_does_not_import_jax():
    program = (
        "import sys; from star_jax.cli.run import parse_experiment; parse_experiment([]);"
        "print([name for name in ('jax', 'flax', 'transformers', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_former_flag_that_contradicts_the_file_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RANKS)
    with pytest.raises(ConfigError, match=r"acquisition\.normaliser is rank, but --acquisition\.arithmetic released"):
        parse_experiment(["--config", str(path), "--acquisition.arithmetic", "released"])


def test_a_value_that_is_refused_is_one_line_whether_it_is_from_a_file_or_a_flag(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("lora: {rank: 0}\n")
    said = []
    for argv in (["--config", str(path)], ["--lora.rank", "0"]):
        assert guarded_main(lambda arguments: len(parse_experiment(arguments).seeds), argv) == 2
        said.append(capsys.readouterr().err)
    assert said == [
        f"star_jax: error: {path}:1: lora.rank is 0; it must be at least 1\n",
        "star_jax: error: lora.rank is 0; it must be at least 1\n",
    ]
