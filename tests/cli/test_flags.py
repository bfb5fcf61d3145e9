"""Flags over files, and what a user sees after a mistake: exit code 2, a message, no traceback."""

import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from star_jax.acquisition.strategies import STRATEGIES
from star_jax.cli import flags as command_line
from star_jax.cli.flags import ScoreConfig, guarded_main, parse_experiment, parse_run, parse_score
from star_jax.config import ExperimentConfig, FormatConfig
from star_jax.config_file import config_from_mapping, load_yaml
from star_jax.errors import ConfigError, DataError

CONFIGS = Path(__file__).parent.parent / "configs"
SCORE = ["--model", "m", "--data", "d.jsonl", "--task", "gsm8k"]


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


def test_help_names_every_strategy(capsys):
    with pytest.raises(SystemExit):
        parse_experiment(["--help"])
    assert set(STRATEGIES) <= set(re.findall(r"[a-z_]+", capsys.readouterr().out))


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
    monkeypatch.setattr(command_line, "DEFAULT_CONFIG", tmp_path / "configs" / "quickstart.yaml")
    with pytest.raises(ConfigError, match="pass --config FILE"):
        parse_experiment(["--loop.rounds", "3"])
    with pytest.raises(SystemExit, match="0"):
        parse_experiment(["--help"])
    assert "--config" in capsys.readouterr().out


def test_score_flags():
    assert parse_score(SCORE) == ScoreConfig(model="m", data="d.jsonl", task="gsm8k")
    argv = (
        "--adapter a --answers candidates --mc-samples 4 --seed 7 --out scores.jsonl --batch-size 2 --dtype bfloat16 "
        "--max-prompt-tokens 9 --max-response-tokens 8 --dropout per_token --dropout-rate 0.25 --quantization nf4 "
        "--ignored-fields a,b --too-long drop --on-bad-row skip"
    )
    assert parse_score([*SCORE, *argv.split()]) == ScoreConfig(
        model="m",
        data="d.jsonl",
        task="gsm8k",
        adapter="a",
        answers="candidates",
        mc_samples=4,
        seed=7,
        out="scores.jsonl",
        batch_size=2,
        dtype="bfloat16",
        max_prompt_tokens=9,
        max_response_tokens=8,
        dropout="per_token",
        dropout_rate=0.25,
        quantization="nf4",
        ignored_fields=("a", "b"),
        too_long="drop",
        on_bad_row="skip",
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mc-samples", "0"], "--mc-samples is 0; it must be at least 1"),
        (["--mc-samples", "3"], "--mc-samples 3 needs --adapter"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--seed", "4294967296"], "--seed is 4294967296; it must be less than 4294967296"),
        (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (
            ["--adapter", "a", "--mc-samples", "3", "--dropout-rate", "0"],
            "--dropout-rate is 0.0; it must be from 1e-06 to 0.999999",
        ),
        (["--adapter", "a", "--dropout-rate", "0.1"], "--dropout-rate does nothing in a single pass"),
        (["--answers", "gold"], "gold"),
        (["--quantization", "int4"], "int4"),
        (["--format.prompt", "{{ q }}"], "format is the section of data.task generic, and data.task is gsm8k"),
    ],
)
def test_score_refuses_values_that_make_no_sense(capsys, argv, message):
    with pytest.raises(SystemExit, match="2"):
        parse_score([*SCORE, *argv])
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


SCORE_FILE = """
model: {path: m, dtype: bfloat16, quantization: int8, adapter: a}
scoring: {answers: candidates, batch_size: 3}
data: {task: generic, train: pool.csv, max_prompt_tokens: 9, max_response_tokens: 8, too_long: drop, on_bad_row: skip}
format: {prompt: "{{ q }} ", response: "{{ a }}", answers: ["yes, indeed", "no"], chat: true}
"""


def test_score_takes_an_experiments_file_and_flags_over_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SCORE_FILE)
    config = parse_score(["--config", str(path), "--seed", "3"])
    assert config == ScoreConfig(
        model="m",
        data="pool.csv",
        task="generic",
        adapter="a",
        answers="candidates",
        seed=3,
        batch_size=3,
        dtype="bfloat16",
        quantization="int8",
        max_prompt_tokens=9,
        max_response_tokens=8,
        too_long="drop",
        on_bad_row="skip",
        format=FormatConfig("{{ q }} ", "{{ a }}", answers=("yes, indeed", "no"), chat=True),
    )
    argv = "--model other --data b.jsonl --adapter none --format.chat false --too-long error --format.answers x,y"
    other = parse_score([f"--config={path}", *argv.split()])
    assert (other.model, other.data, other.adapter, other.too_long) == ("other", "b.jsonl", None, "error")
    assert other.format == dataclasses.replace(config.format, chat=False, answers=("x", "y"))


def test_score_asks_for_the_pool_that_a_file_does_not_name(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {path: m}")
    with pytest.raises(SystemExit, match="2"):
        parse_score(["--config", str(path)])
    shown = capsys.readouterr().err
    assert "--data" in shown
    assert "--model" not in shown
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the configuration file"):
        parse_score(["--config", "nowhere.yaml"])


@pytest.mark.parametrize(
    ("argv", "value"),
    [([], True), (["true"], True), (["False"], False), (["--seeds", "1"], True)],
)
def test_switches_are_flags_and_take_a_value(argv, value):
    quickstart = parse_experiment(["--lora.rslora", *argv])
    assert quickstart.lora.rslora is value


def test_score_names_the_required_flags(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_score([])
    shown = capsys.readouterr().err
    assert all(flag in shown for flag in ("--model", "--data", "--task"))


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


def test_guarded_main_lets_a_defect_of_the_program_through():
    def fail(argv):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        guarded_main(fail, [])


def test_guarded_main_explains_an_interruption(capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    assert guarded_main(interrupt, [], "interrupted; the same command goes on") == 130
    assert capsys.readouterr().err == "star_jax: interrupted; the same command goes on\n"


def test_guarded_main_is_silent_when_the_reader_leaves():
    program = (
        "import sys; from star_jax.cli.flags import guarded_main;"
        "sys.exit(guarded_main(lambda argv: [print('x' * 99) for _ in range(99999)] and 0, []))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


def test_parsing_does_not_import_jax():
    program = (
        "import sys; from star_jax.cli.flags import parse_experiment; parse_experiment([]);"
        "print([name for name in ('jax', 'flax', 'transformers', 'datasets', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
