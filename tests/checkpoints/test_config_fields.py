"""What a config.json holds beside what is read: said once and passed over, or refused where something reads it."""

import json
import logging
from pathlib import Path

import pytest
from published_configs import COMPARED, MADE_UP, PUBLISHED
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers_source import family_files, fields_read, shared_files

from star_jax.checkpoints.config_fields import INERT, MEANINGFUL, OF_WRAPPERS, READ, declared_fields, leftover_fields
from star_jax.checkpoints.families import FAMILIES, WRAPPERS
from star_jax.checkpoints.hf_config import read_config
from star_jax.errors import ConfigError

KINDS = [*FAMILIES, *WRAPPERS]

HARMLESS = """
unk_token_id _model_name_or_path max_length min_length temperature top_p repetition_penalty do_sample num_beams
forced_eos_token_id model_max_length tokenizer_padding_side neftune_noise_alpha use_liger_kernel lora_r
fine_tuning_task quantization_bits mlx_version gguf_file_type torchscript use_bfloat16 finetuning_task prefix tf_legacy
exported_from export_version revision_date base_model_commit
"""
"""Names that trainers and converters write, or might."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_or_refused_for_what_they_ask(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(published.fields))
    if published.refused:
        with pytest.raises(ConfigError, match=f"config.json: {published.refused}"):
            read_config(tmp_path, "float32")
        return
    with caplog.at_level(logging.WARNING, "star_jax"):
        config = read_config(tmp_path, "float32")
    kind = published.fields.get("text_config", published.fields)
    if "hidden_size" in kind:
        assert (config.hidden_size, config.num_hidden_layers) == (kind["hidden_size"], kind["num_hidden_layers"])
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("star_jax")]
    assert [line.rpartition(": ")[2] for line in lines] == (
        [", ".join(published.leftover)] if published.leftover else []
    )


def test_there_are_thirty_published_ones_of_many_families() -> None:
    named = [one for one in PUBLISHED.values() if one.source != MADE_UP]
    assert len(named) >= 30
    assert len({one.source for one in named}) == len(named)
    assert {name for name, one in PUBLISHED.items() if one.source != MADE_UP} == COMPARED.keys()
    assert {one.fields["model_type"] for one in named} >= {"llama", "mistral", "qwen2", "gemma2", "phi3", "olmo2"}


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_no_code_reads_change_nothing(kind: str) -> None:
    names = HARMLESS.split()
    assert leftover_fields(dict.fromkeys(names, 1), CONFIG_MAPPING[kind], ()) == names


def test_the_user_may_name_them_and_hears_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = PUBLISHED["what a trainer leaves behind"]
    (tmp_path / "config.json").write_text(json.dumps(fields.fields))
    with caplog.at_level(logging.WARNING, "star_jax"):
        read_config(tmp_path, "float32", ignored_fields=fields.leftover)
    assert not caplog.records


@pytest.mark.parametrize("value", [True, 1, "x", [1], {"a": 1}])
def test_names_of_anything_that_the_class_has_are_refused(value: object) -> None:
    """A field of the name of a property, a method or a table of the class would take its place."""
    for name in ("attribute_map", "sub_configs", "get_text_config", "default_theta", "per_layer_config"):
        with pytest.raises(ConfigError, match=f"{name}: not known for llama, and may change"):
            leftover_fields({name: value}, CONFIG_MAPPING["llama"], ())


def test_only_the_value_that_says_nothing_is_passed_over() -> None:
    llama = CONFIG_MAPPING["llama"]
    assert leftover_fields({"is_causal": True, "layer_types": ["full_attention"] * 2, "unk": None}, llama, ()) == []
    for name, value in {"is_causal": False, "layer_types": ["full_attention", "sliding_attention"]}.items():
        with pytest.raises(ConfigError, match=f"{name}: not known for llama"):
            leftover_fields({name: value}, llama, ())


# The tables, against the source of the Transformers that is installed.


def test_what_all_families_go_through_reads_no_field_that_is_not_known() -> None:
    found = fields_read(shared_files())
    assert found - READ - INERT - MEANINGFUL == set()
    # The reading finds what it is meant to find.
    assert {
        "is_causal",
        "attention_chunk_size",
        "sliding_window",
        "layer_types",
        "text_config",
        "rope_parameters",
    } <= found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_familys_own_code_reads_no_field_that_is_not_known(kind: str) -> None:
    found = fields_read(family_files(kind), _classes(kind))
    assert found - READ - INERT - MEANINGFUL == set()
    assert {"hidden_size", "num_attention_heads", "intermediate_size"} <= found


def _classes(kind: str) -> tuple[str, ...]:
    """How the classes of a family's model of text begin."""
    stem = CONFIG_MAPPING[kind].__name__.removesuffix("Config").removesuffix("Text")
    ends = ("RMSNorm", "Text", "MLP", "Attention", "Rotary", "Decoder", "ForCausalLM", "Experts", "Sparse", "TopK")
    return tuple(f"{stem}{end}" for end in ends)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_that_a_class_declares_is_known(kind: str) -> None:
    """A field that a newer release adds must be looked at: it may change the mathematics."""
    declared = declared_fields(CONFIG_MAPPING[kind])
    assert declared >= {"architectures", "dtype"}
    assert declared - READ - INERT - (OF_WRAPPERS if kind in WRAPPERS else set()) == set()


def test_the_tables_do_not_overlap() -> None:
    assert not READ & INERT
    assert not READ & MEANINGFUL
    assert not INERT & MEANINGFUL
    assert declared_fields(PreTrainedConfig) <= READ | INERT
