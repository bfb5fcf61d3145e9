"""Where a model comes from, which of its files are read, and what is wrong with them said in one sentence."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from star_jax.checkpoints.files import HUB_FILES, on_one_line, read_object, weight_files
from star_jax.checkpoints.hub import NOT_FETCHED, end_tokens, load_tokenizer, resolve_folder
from star_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("embedded:nothing", "'embedded:nothing'; no model of that name ships with the package"),
        ("./absent", "'./absent'; there is no such folder, and it is not a hub name OWNER/MODEL"),
        ("/absent/folder", "there is no such folder, and it is not a hub name"),
        ("absent", "there is no such folder, and it is not a hub name"),
        ("one/too/many", "there is no such folder, and it is not a hub name"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, sentence: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        resolve_folder(path)


def test_a_local_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert resolve_folder("owner/model").resolve() == tmp_path / "owner" / "model"
    assert resolve_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_folder("~/owner/model") == tmp_path / "owner" / "model"


def test_a_hub_name_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def fetch(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked[name] = allow_patterns, ignore_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_folder("owner/model") == tmp_path
    assert asked == {"owner/model": (list(HUB_FILES), list(NOT_FETCHED))}


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00004.safetensors", True),
        ("model.safetensors.index.json", True),
        ("config.json", True),
        ("tokenizer.json", True),
        ("tokenizer.model", True),
        ("chat_template.jinja", True),
        ("merges.txt", True),
        ("vocab.txt", True),
        ("pytorch_model.bin", False),
        ("pytorch_model-00001-of-00002.bin", False),
        ("consolidated.00.pth", False),
        ("model.pt", False),
        ("weights.pkl", False),
        ("tf_model.h5", False),
        ("model.gguf", False),
        ("modeling_exotic.py", False),
        ("configuration_exotic.py", False),
        ("consolidated.safetensors", False),
        ("consolidated-00001-of-00002.safetensors", False),
        ("original/params.json", False),
        ("original/tokenizer.model", False),
    ],
)
def test_neither_pickles_nor_code_nor_weights_twice_are_fetched(name: str, fetched: bool) -> None:
    assert bool(list(filter_repo_objects([name], allow_patterns=HUB_FILES, ignore_patterns=NOT_FETCHED))) is fetched


def test_a_hub_that_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: Any) -> str:
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"the hub did not give it: no route and a long story$"):
        resolve_folder("owner/model")


def test_an_error_is_told_on_one_line() -> None:
    assert on_one_line(ValueError("  one\n\ttwo ")) == "one two"
    assert len(on_one_line(ValueError("x" * 1000))) == 300
    assert on_one_line(KeyError()) == "KeyError"


# Files of a folder.


def test_weights_are_all_safetensors_files_in_order(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", "pytorch_model.bin"):
        (tmp_path / name).touch()
    assert [file.name for file in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]


def test_weights_that_lie_there_twice_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").touch()
    assert [file.name for file in weight_files(tmp_path)] == ["consolidated.safetensors"]
    (tmp_path / "model-00001-of-00001.safetensors").touch()
    assert [file.name for file in weight_files(tmp_path)] == ["model-00001-of-00001.safetensors"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_named_and_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(
        ConfigError,
        match=rf"has no \*.safetensors file; it has {name}, and pickled weights are not read because reading them can "
        r"run any code: convert them with save_pretrained\(..., safe_serialization=True\)$",
    ):
        weight_files(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \*.safetensors file, and pickled weights would not be read because"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"model_type": "llama",\n', "object.json, line 2 is not valid JSON"),
        (b"\xff\xfe{}", "object.json is UTF-16 and not UTF-8 text"),
        (b'["model_type"]', "object.json is a list, not an object"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "object.json").write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        read_object(tmp_path / "object.json")


def test_a_json_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "object.json").write_text('{"a": [1, "ü"]}', encoding="utf-8")
    assert read_object(tmp_path / "object.json") == {"a": [1, "ü"]}


# Tokenizers.


def save_tokenizer(folder: Path, **special: str) -> None:
    words = Tokenizer(WordLevel({"</s>": 0, "one": 1, "two": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, eos_token="</s>")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_token_id == 0
    assert tokenizer(["two one"])["input_ids"] == [[2, 1]]


def test_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="the tokenizer has no end-of-sequence token, so a response could not end"):
        load_tokenizer(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer that transformers can read"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", ["{}", '{"model": {}}', '{"version": "1.0", "model": {"type": "New"}}', "{"])
def test_a_broken_tokenizer_is_one_sentence(tmp_path: Path, content: str) -> None:
    save_tokenizer(tmp_path, eos_token="</s>")
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match="has no tokenizer that transformers can read"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_comes_as_code_is_refused_without_advice_to_run_it(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, eos_token="</s>")
    (tmp_path / "tokenizer.json").unlink()
    config = {"tokenizer_class": "ExoticTokenizer", "auto_map": {"AutoTokenizer": ["exotic.ExoticTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "exotic.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ConfigError, match="could do anything on this machine; choose a model whose") as caught:
        load_tokenizer(str(tmp_path))
    assert "trust_remote_code" not in str(caught.value)


@pytest.mark.parametrize(
    ("generation", "config", "tokens"),
    [
        ({"eos_token_id": [7, 3, 7]}, {"eos_token_id": 5}, (3, 7)),
        ({"eos_token_id": 0}, {"eos_token_id": 5}, (0,)),
        ({"temperature": 1.0}, {"eos_token_id": 5}, (5,)),
        (None, {"eos_token_id": [5, 6]}, (5, 6)),
        (None, {"eos_token_id": None}, ()),
        (None, None, ()),
    ],
)
def test_end_tokens_are_those_of_generation_or_else_of_the_model(tmp_path: Path, generation, config, tokens) -> None:
    for name, content in (("generation_config.json", generation), ("config.json", config)):
        if content is not None:
            (tmp_path / name).write_text(json.dumps(content))
    assert end_tokens(str(tmp_path)) == tokens


@pytest.mark.parametrize("value", ["</s>", True, [1, "2"], 1.5])
def test_end_tokens_that_are_no_numbers_are_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ConfigError, match=r"config.json: eos_token_id is .*; it must be a token's number or several"):
        end_tokens(str(tmp_path))


@pytest.mark.parametrize("config", [False, True])
def test_an_adapter_folder_is_no_model(tmp_path: Path, config: bool) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    if config:
        (tmp_path / "config.json").write_text("{}")
    sentence = "holds a model and an adapter" if config else "is an adapter of the model some/base, not a model"
    for path in (str(tmp_path), tmp_path):
        with pytest.raises(ConfigError, match=sentence):
            resolve_folder(path)


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("value", [50, -1, [3, 50]])
def test_end_tokens_are_tokens_of_the_vocabulary(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50}))
    (tmp_path / name).write_text(json.dumps({"vocab_size": 50, "eos_token_id": value}))
    with pytest.raises(ConfigError, match=f"{name}: eos_token_id is .*, and the vocabulary has tokens 0 to 49"):
        end_tokens(tmp_path)


def test_end_tokens_of_a_language_model_inside_another(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": [7, 3], "vocab_size": 8}}))
    assert end_tokens(tmp_path) == (3, 7)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", 3])
def test_an_index_that_names_no_file_of_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ConfigError, match=r"index.json.*; fetch it again"):
        weight_files(tmp_path)
