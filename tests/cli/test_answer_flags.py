"""Which settings hold where a run or a file has some, and flags others."""

import shutil

import pytest

from star_jax.cli.answer_flags import parse_answer
from star_jax.cli.evaluate import EvaluateFlags
from star_jax.cli.predict import PredictFlags
from star_jax.config import FormatConfig
from star_jax.errors import ConfigError

YAML = """\
model: {path: OWNER/MODEL, dtype: bfloat16, quantization: nf4, ignored_fields: [odd]}
data: {task: generic, max_prompt_tokens: 77, too_long: drop}
generation: {batch_size: 5}
format: {prompt: "Q: {{ question }}\\nA: ", answers: ["yes", "no"], match: choice}
"""


@pytest.fixture
def alone(labelled_run, tmp_path):
    shutil.copytree(labelled_run / "out" / "random" / "seed-0" / "adapter", tmp_path / "alone")
    return str(tmp_path / "alone")


def asked(*argv, kind=PredictFlags):
    return parse_answer("star-jax test", kind, [*map(str, argv)])[1]


@pytest.mark.parametrize("kind", [PredictFlags, EvaluateFlags])
def test_single_flags_replace_single_settings_of_a_file(alone, tmp_path, kind):
    (tmp_path / "config.yaml").write_text(YAML)
    config = asked(alone, "--config", tmp_path / "config.yaml", kind=kind).config
    assert (config.model.path, config.model.dtype, config.model.quantization) == ("OWNER/MODEL", "bfloat16", "nf4")
    assert (config.data.max_prompt_tokens, config.data.too_long, config.generation.batch_size) == (77, "drop", 5)
    assert config.format.answers == ("yes", "no")
    flags = ("--quantization", "none", "--format.match", "exact", "--too-long", "error", "--max-response-tokens", "3")
    changed = asked(alone, "--config", tmp_path / "config.yaml", *flags, "--batch-size", "9", kind=kind).config
    assert (changed.model.dtype, changed.model.quantization, changed.model.ignored_fields) == (
        "bfloat16",
        "none",
        ("odd",),
    )
    assert (changed.data.max_prompt_tokens, changed.data.max_response_tokens) == (77, 3)
    assert (changed.data.too_long, changed.generation.batch_size) == ("error", 9)
    assert (changed.format.match, changed.format.answers) == ("exact", ("yes", "no"))
    assert changed.format.prompt == "Q: {{ question }}\nA: "


def test_an_adapter_names_its_model_and_flags_the_rest(alone):
    config = asked(alone, "--task", "generic", "--format.prompt", "{{ q }} ").config
    assert config.model.path == "embedded:skills"
    assert config.format == FormatConfig(prompt="{{ q }} ")
    assert (config.data.max_prompt_tokens, config.data.max_response_tokens) == (1024, 512)


@pytest.mark.parametrize("place", ["out", "out/random/seed-0", "out/random/seed-0/adapter"])
def test_a_run_is_found_from_its_folder_its_adapter_and_its_experiment(labelled_run, place):
    found = asked(labelled_run / place, "--dtype", "bfloat16")
    assert found.run.path.resolve() == (labelled_run / "out" / "random" / "seed-0").resolve()
    assert found.adapter == found.run.path / "adapter"
    assert (found.config.model.dtype, found.config.data.task, found.config.lora.rank) == ("bfloat16", "skills", 2)
    assert (len(found.run.labels), len(found.run.skipped), found.run.rounds) == (13, 1, 1)


def test_a_plug_in_is_loaded_before_its_task_is_looked_up(alone, tmp_path, registries):
    (tmp_path / "mine.py").write_text("raise RuntimeError('loaded')\n")
    with pytest.raises(ConfigError, match="loaded"):
        asked(alone, "--task", "mine", "--plugins", tmp_path / "mine.py")
