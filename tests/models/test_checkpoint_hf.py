"""Model folders: written and read back, and what is wrong with a folder said in one sentence."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from star_jax.config import ConfigError
from star_jax.models.checkpoint_hf import LanguageModel, load_model, load_tokenizer, resolve_folder, save_model
from star_jax.models.transformer import TransformerConfig

MakeModel = Callable[[TransformerConfig], LanguageModel]
LAST = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_is_loaded(
    make_model: MakeModel, tiny_config: TransformerConfig, tmp_path: Path, dtype: str, tied: bool
) -> None:
    model = make_model(dataclasses.replace(tiny_config, dtype=dtype, tie_word_embeddings=tied))
    save_model(model, tmp_path / "a" / "model")
    loaded = load_model(str(tmp_path / "a" / "model"), dtype)
    assert loaded.config == model.config
    chex.assert_trees_all_equal_structs(loaded.params, model.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded.params, model.params)
    chex.assert_trees_all_equal(loaded.params, model.params)


def test_a_checkpoint_is_cast_to_the_type_asked_for(tiny_model: LanguageModel, tmp_path: Path) -> None:
    save_model(tiny_model, tmp_path)
    narrow = load_model(str(tmp_path), "bfloat16")
    assert narrow.config == dataclasses.replace(tiny_model.config, dtype="bfloat16")
    chex.assert_trees_all_equal(narrow.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_model.params))


@pytest.fixture
def folder(tiny_model: LanguageModel, tmp_path: Path) -> Path:
    save_model(tiny_model, tmp_path)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    """Sets fields of config.json; None deletes one."""
    file = folder / "config.json"
    raw = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))


def test_kernels_are_stored_transposed_under_their_names(tiny_model: LanguageModel, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for layer in range(tiny_model.config.num_hidden_layers):
        kernel = np.asarray(tiny_model.params["layers"]["k_proj"]["kernel"][layer])
        np.testing.assert_array_equal(tensors[f"model.layers.{layer}.self_attn.k_proj.weight"], kernel.T)
    assert len(tensors) == 3 + 9 * tiny_model.config.num_hidden_layers


def test_weights_in_several_files_are_read_together(tiny_model: LanguageModel, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[:7]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: tensors[name] for name in names[7:]}, folder / "model-00002-of-00002.safetensors")
    chex.assert_trees_all_equal(load_model(str(folder)).params, tiny_model.params)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda tensors: tensors.pop(LAST), f"the tensor {LAST} is missing"),
        (
            lambda tensors: tensors.update({LAST: tensors[LAST][:, 1:]}),
            rf"the tensor {LAST} has shape \(24, 39\); config.json says \(24, 40\)",
        ),
        (lambda tensors: tensors.pop("lm_head.weight"), "the tensor lm_head.weight is missing"),
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}),
            "the tensors model.layers.0.self_attn.q_norm.weight are not part of a Llama decoder",
        ),
        (
            lambda tensors: tensors.update({"model.layers.2.input_layernorm.weight": np.ones(24, np.float32)}),
            "the tensors model.layers.2.input_layernorm.weight are not part of a Llama decoder",
        ),
    ],
)
def test_wrong_tensors_are_named(folder: Path, edit: Callable[[dict[str, np.ndarray]], Any], sentence: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=sentence):
        load_model(str(folder))


def test_stored_rotary_frequencies_and_a_tied_head_are_no_extra_tensors(
    make_model: MakeModel, tiny_config: TransformerConfig, tmp_path: Path
) -> None:
    model = make_model(dataclasses.replace(tiny_config, tie_word_embeddings=True))
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    chex.assert_trees_all_equal(load_model(str(tmp_path)).params, model.params)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'; this decoder reads llama"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, "rope_type asks for"),
        ({"hidden_size": None}, "config.json: the field 'hidden_size' is missing"),
        ({"vocab_size": 54}, r"model.embed_tokens.weight has shape \(53, 24\); config.json says \(54, 24\)"),
    ],
)
def test_wrong_config_fields_are_named(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    change_config(folder, **changes)
    with pytest.raises(ConfigError, match=sentence):
        load_model(str(folder))


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config.json; a model is a Hugging Face model folder"):
        load_model(str(folder))


def test_a_config_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama",\n')
    with pytest.raises(ConfigError, match=r"config.json is not valid JSON: .*line 2"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no .*safetensors file; pickled weights are not read"):
        load_model(str(folder))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_weights_that_are_cut_or_a_pointer_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be read: .*; fetch the whole file again"):
        load_model(str(folder))


# Where a model comes from.


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("embedded:nothing", "'embedded:nothing'; no model of that name ships with the package"),
        ("./absent", "'./absent'; there is no such folder, and it is not a hub name OWNER/MODEL"),
        ("/absent/folder", "there is no such folder, and it is not a hub name"),
        ("absent", "there is no such folder, and it is not a hub name"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        resolve_folder(path)


def test_a_hub_name_is_fetched_without_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("owner/model") == tmp_path
    assert set(asked) == {"owner/model"}
    assert not any(pattern.endswith((".bin", ".pt", "*", ".pkl")) for pattern in asked["owner/model"])


def test_a_hub_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: Any) -> str:
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"the hub did not give it: no route$"):
        resolve_folder("owner/model")


# Tokenizers.


def save_tokenizer(folder: Path, **special: str) -> None:
    words = Tokenizer(WordLevel({"</s>": 0, "one": 1, "two": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def test_tokenizer_of_a_folder(folder: Path) -> None:
    save_tokenizer(folder, eos_token="</s>")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.eos_token_id == 0
    assert tokenizer(["two one"])["input_ids"] == [[2, 1]]


def test_tokenizer_without_an_end_is_refused(folder: Path) -> None:
    save_tokenizer(folder)
    with pytest.raises(ConfigError, match="the tokenizer has no end-of-sequence token, so a response could not end"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer that transformers can read"):
        load_tokenizer(str(folder))
