"""Flags of the command that scores a file, alone and over an experiment's file."""

import dataclasses

import pytest

from star_jax.cli.score_flags import ScoreConfig, parse_score
from star_jax.config import FormatConfig
from star_jax.errors import ConfigError
from star_jax.registry import TASKS

SCORE = ["--model", "m", "--data", "d.jsonl", "--task", "gsm8k"]


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
    with pytest.raises((SystemExit, ConfigError)) as stop:
        parse_score([*SCORE, *argv])
    said = capsys.readouterr().err
    # A flag that is none is explained with the flags there are; what a value contradicts is one sentence.
    assert message in (" ".join(said.replace("│", " ").split()) if said else str(stop.value))
    assert isinstance(stop.value, ConfigError) or stop.value.code == 2


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


PLUGIN = "from star_jax.registry import TASKS\nTASKS.register('task_of_mine', None)\n"


@pytest.mark.usefixtures("registries")
def test_tasks_of_plugins_are_known_by_a_flag_or_by_the_file(tmp_path):
    plugin, path = tmp_path / "mine.py", tmp_path / "mine.yaml"
    plugin.write_text(PLUGIN)
    path.write_text(f"plugins: [{plugin}]\ndata: {{task: task_of_mine, train: pool.csv}}\nmodel: {{path: m}}")
    assert parse_score(["--config", str(path)]).plugins == (str(plugin),)
    assert "task_of_mine" in TASKS
    argv = ["--model", "m", "--data", "d.jsonl", "--task", "task_of_mine", "--plugins", str(plugin)]
    assert parse_score(argv) == ScoreConfig("m", "d.jsonl", "task_of_mine", plugins=(str(plugin),))
    path.write_text("plugins: [nowhere.py]")
    assert parse_score(["--config", str(path), *argv]).plugins == (str(plugin),)
    with pytest.raises(ConfigError, match=r"plugins names nowhere\.py; there is no such file"):
        parse_score(["--config", str(path)])


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


def test_score_names_the_required_flags(capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_score([])
    shown = capsys.readouterr().err
    assert all(flag in shown for flag in ("--model", "--data", "--task"))
