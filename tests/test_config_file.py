"""YAML into configuration: round trips, YAML's traps, and errors that name file, line, field and remedy."""

import dataclasses
import random
import re
import typing
from pathlib import Path

import pytest
import yaml
from random_models import PROJECTIONS

from star_jax.config import (
    AcquisitionConfig,
    ExperimentConfig,
    FormatConfig,
    LabelStudioConfig,
    LlmConfig,
    LoopConfig,
    TrainingConfig,
)
from star_jax.config_file import Source, config_from_mapping, load_yaml, without_former_settings
from star_jax.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def write_text(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write_text


def load(path):
    return config_from_mapping(*load_yaml(path))


def random_value(hint, rng):
    """Some value of a declared type, as Python has it after construction."""
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return rng.choice([None, random_value(arguments[0], rng)])
    if typing.get_origin(hint) is typing.Union:
        return random_value(rng.choice(arguments), rng)
    if typing.get_origin(hint) is typing.Literal:
        return rng.choice(arguments)
    if typing.get_origin(hint) is tuple:
        return tuple(rng.sample(["off", "1e-4", "x, y", "true"], rng.choice([0, 2, 3])))
    return {
        bool: rng.choice([True, False]),
        int: rng.randrange(1, 99),
        float: rng.choice([0.5, 1e-5, 0.25]),
        str: rng.choice(["off", "1e-4", "010", "7", "1:30", "x"]),
    }[hint]


def random_config(rng):
    """A valid configuration in which almost every field differs from its default."""
    sections = {}
    for name, section in typing.get_type_hints(ExperimentConfig).items():
        if dataclasses.is_dataclass(section):
            hints = typing.get_type_hints(section)
            values = {key: random_value(hint, rng) for key, hint in hints.items() if key != "targets"}
            if section is TrainingConfig:
                values |= {"warmup_fraction": 0.25, "decay_fraction": 0.5, "label_smoothing": 0.5}
                values |= rng.choice([{"replay": None, "replay_rows": 0}, {"replay": "rows.jsonl", "replay_rows": 3}])
            if "targets" in hints:
                values |= {"dropout": 0.5, "targets": tuple(rng.sample(PROJECTIONS, rng.randrange(1, 8)))}
            if section is FormatConfig:
                values |= {"system": random_value(str, rng) if values["chat"] else None}
                values |= {"match": rng.choice(["exact", "choice"]) if values["answers"] else "numeric"}
            if section is LoopConfig:
                values |= {"budget_unit": "tokens", "budget_per_round": 7.5, "stop_when": "accuracy >= 0.5"}
            if section is LlmConfig:
                values |= {"key_variable": "KEY", "audit": 0.5, "base_url": rng.choice([None, "http://host/v1"])}
            if section is LabelStudioConfig:
                values |= {"key_variable": "KEY", "url": "https://host:8080"}
            sections[name] = section(**values)
    annotator = rng.choice(["simulated", "llm", "label_studio"])
    for other in {"simulated", "llm", "label_studio"} - {annotator}:
        del sections[other]
    sections["data"] = dataclasses.replace(sections["data"], task="generic")
    seeds = tuple(rng.sample(range(100), rng.randrange(1, 4)))
    return ExperimentConfig("out", ("star", "random"), seeds, annotator=annotator, **sections)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_run_folder_records_reads_back_as_the_same_configuration(write, seed):
    config = random_config(random.Random(seed))
    assert load(write(yaml.safe_dump(config.to_dict()))) == config


def test_absent_fields_keep_their_defaults(write):
    assert load(write("# nothing but a comment\n")) == ExperimentConfig()
    assert load(write("loop: {rounds: 3}")) == ExperimentConfig(loop=LoopConfig(rounds=3))


def test_yaml_traps_are_read_as_meant(write):
    config = load(
        write(
            """
            output_dir: "2024"
            lora: {alpha: 32, training_dropout: off}
            training: {learning_rate: 1e-4, l2_b: .5, decay_a: 2.5E3, decay_b: 1, gradient_clip: none, entropy_floor: ~}
            acquisition: {schedule: none, normaliser: null}
            data: {train: null, test: no.jsonl}
            """
        )
    )
    assert config.output_dir == "2024"
    assert (config.lora.alpha, type(config.lora.alpha)) == (32.0, float)
    assert config.lora.training_dropout == "off"
    training = config.training
    assert (training.learning_rate, training.l2_b, training.decay_a, training.decay_b) == (1e-4, 0.5, 2500.0, 1.0)
    assert (training.gradient_clip, training.entropy_floor) == (None, None)
    assert (config.acquisition.schedule, config.acquisition.normaliser) == (None, None)
    assert (config.data.train, config.data.test) == (None, "no.jsonl")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("loop:\n  initial_labels: 5\n  round: 3", 3, "unknown key loop.round; did you mean loop.rounds?"),
        ("strategy: [star]", 1, "unknown key strategy; did you mean strategies?"),
        ("lop: {rounds: 3}", 1, "unknown key lop; did you mean loop?"),
        ("\nlearning_rate: 0.1", 2, "unknown key learning_rate; did you mean training.learning_rate?"),
        ("loop:\n  zzz: 3", 2, "unknown key loop.zzz; the keys of loop are initial_labels, labels_per_round, rounds"),
        ("loop.rounds: 3", 1, "unknown key loop.rounds; write rounds indented under loop:"),
        ("1: 3", 1, "unknown key 1; the keys here are output_dir,"),
        ("loop:\n\n  rounds: ten", 3, "loop.rounds is 'ten'; it must be a whole number"),
        ("loop: {rounds: 2.0}", 1, "loop.rounds is 2.0; it must be a whole number"),
        ("loop: {rounds: true}", 1, "loop.rounds is true; it must be a whole number"),
        ("loop: {rounds: 010}", 1, "loop.rounds is '010'; it must be a whole number"),
        ("training: {l2_b: .nan}", 1, "training.l2_b is '.nan'; it must be a number"),
        ("training: {gradient_clip: x}", 1, "training.gradient_clip is 'x'; it must be a number or null"),
        ("output_dir: 3", 1, "output_dir is 3; it must be text"),
        ("output_dir:", 1, "output_dir is null; it must be text"),
        ("data:\n  task: skills\n  pool_limit: true", 3, "data.pool_limit is true; it must be a whole number or null"),
        ("model: {dtype: float16}", 1, "model.dtype is 'float16'; it must be one of float32, bfloat16"),
        (
            "acquisition: {selection: best}",
            1,
            "acquisition.selection is 'best'; it must be one of top_k, power or null",
        ),
        ("strategies: star", 1, "strategies is 'star'; it must be a list of names such as [a, b]"),
        (
            "format: {answers: [1, 2]}",
            1,
            "format.answers is [1, 2]; it must be a list of names such as [a, b], in quotes",
        ),
        (
            "loop: {}\nacquisition:\n  reduction: sum\n  arithmetic: exact",
            4,
            "acquisition.arithmetic is 'exact'; it must be one of standard, released",
        ),
        ("acquisition: {arithmetic: null}", 1, "acquisition.arithmetic is null; it must be one of standard, released"),
        ("acquisition: {arithmetic: [released]}", 1, "acquisition.arithmetic is ['released']; it must be one of stand"),
        (
            "acquisition:\n  normaliser: rank\n  arithmetic: released",
            3,
            "acquisition.normaliser is rank, but acquisition.arithmetic released scales the base by min-max and the "
            "full model not at all; set one of the two",
        ),
        (
            "acquisition: {normaliser: best}",
            1,
            "acquisition.normaliser is 'best'; it must be one of minmax, zscore, rank, released or null",
        ),
        ("acquisition: {arithmetics: released}", 1, "unknown key acquisition.arithmetics; the keys of acquisition are"),
        ("arithmetic: released", 1, "unknown key arithmetic; the keys here are output_dir"),
        ("plugins: mine.py", 1, "plugins is 'mine.py'; it must be a list of names such as [a, b]"),
        ("track: {tensorboard: true}", 1, "track is {'tensorboard': True}; it must be a list of names such as [a, b]"),
        ("annotator: [csv]", 1, "annotator is ['csv']; it must be text"),
        ("format: {chat: yes}", 1, "format.chat is 'yes'; it must be true or false"),
        (
            "data: {task: boolq}\nformat:\n  prompt: x",
            2,
            "format is the section of data.task generic, and data.task is boolq",
        ),
        ("format: {prompt: {{ question }}}", 1, "not valid YAML"),
        ("seeds: 0", 1, "seeds is 0; it must be a list of whole numbers such as [0, 1]"),
        ("seeds: [0, x]", 1, "seeds is [0, 'x']; it must be a list of whole numbers such as [0, 1]"),
        ("seeds: [true]", 1, "seeds is [True]; it must be a list of whole numbers such as [0, 1]"),
        ("loop:\n# rounds: 3\n", 1, "loop is null; it must be a section: indented keys below it"),
        ("loop: 3", 1, "loop is 3; it must be a section: indented keys below it"),
        ("data:\n  task: skills\nloop:\n  rounds: 0", 4, "loop.rounds is 0; it must be at least 1"),
        (
            "data:\n  task: skills\ntraining:\n  replay_rows: 3",
            4,
            "training.replay and training.replay_rows go together",
        ),
        ("model: {}\nseeds: []", 2, "seeds is empty"),
        ("model: {}\nloop:\n  rounds: 3\n  rounds: 4", 4, "loop.rounds is already given in line 3; keep one of them"),
        ("a: [1\nb: 2", 2, "not valid YAML"),
        ("a: b: c", 1, "not valid YAML: mapping values are not allowed here; check indentation"),
        ("a: 1\n--- \nb: 2", 2, "not valid YAML"),
        ("a: !!python/name:os.system", 1, "not valid YAML"),
        ("[a, b]: 1", 1, "not valid YAML"),
        ("- a", 1, "the file must hold keys"),
    ],
)
def test_errors_name_file_line_field_and_remedy(write, text, line, message):
    path = write(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}:{line}: ')}.*{re.escape(message)}"):
        load(path)


@pytest.mark.parametrize(
    ("text", "normaliser"),
    [
        ("acquisition: {arithmetic: released}", "released"),
        ("acquisition: {arithmetic: standard}", None),
        ("acquisition: {arithmetic: standard, normaliser: rank}", "rank"),
        ("acquisition: {arithmetic: standard, normaliser: released}", "released"),
        ("acquisition: {arithmetic: released, normaliser: none}", "released"),
        ("acquisition: {arithmetic: released, normaliser: null}", "released"),
        ("acquisition: {arithmetic: released, normaliser: released}", "released"),
        ("acquisition: {normaliser: released}", "released"),
    ],
)
def test_the_released_arithmetic_of_former_files_is_todays_scale(write, text, normaliser):
    assert load(write(text)) == ExperimentConfig(acquisition=AcquisitionConfig(normaliser=normaliser))


def test_other_settings_of_a_former_file_stay_as_they_are():
    mapping = {"seeds": [1], "acquisition": {"reduction": "mean", "arithmetic": "released", "power": 2.0}}
    now = without_former_settings(mapping)
    assert now == {"seeds": [1], "acquisition": {"reduction": "mean", "normaliser": "released", "power": 2.0}}
    assert "arithmetic" in mapping["acquisition"]  # what was given is left alone
    for other in ({}, {"seeds": [1]}, {"acquisition": None}, {"acquisition": {"power": 2.0}}, {"acquisition": "x"}):
        assert without_former_settings(other) is other


def test_the_config_of_the_released_code_has_its_scale():
    config = load(Path(__file__).parents[1] / "configs" / "released.yaml")
    assert config.acquisition.normaliser == "released"
    assert (config.acquisition.schedule, config.acquisition.selection) == ("released", "top_k")
    assert "star" not in config.strategies


def test_errors_without_a_line_name_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the configuration file: No such file"):
        load_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration file: Is a directory"):
        load_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"output_dir: caf\xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot read the configuration file: it is not UTF-8 text"):
        load_yaml(tmp_path / "latin.yaml")
    (tmp_path / "control.yaml").write_bytes(b"output_dir: a\x01")
    with pytest.raises(ConfigError, match=r"control\.yaml:1: not valid YAML: the character #x0001"):
        load_yaml(tmp_path / "control.yaml")
    with pytest.raises(ConfigError, match=r"^a mapping: loop\.rounds is 0; it must be at least 1$"):
        config_from_mapping({"loop": {"rounds": 0}}, Source("a mapping"))


def test_a_self_referring_file_is_refused(write):
    with pytest.raises(ConfigError, match=r":1: not valid YAML: an alias is part of what it stands for"):
        load(write("loop: &loop\n  again: *loop"))


@pytest.mark.parametrize("value", ["8x1", "0", "-2", "1.5", "true"])
def test_devices_of_a_mesh_are_a_whole_number_or_auto(write, value):
    with pytest.raises(ConfigError, match=r"mine.yaml:2: mesh.fsdp is .*; it must be "):
        load(write(f"mesh:\n  fsdp: {value}\n"))


def test_a_mesh_is_read_from_a_file(write):
    mesh = load(write("mesh: {data: auto, fsdp: 4}\n")).mesh
    assert (mesh.data, mesh.fsdp) == ("auto", 4)
