"""Models and adapters as a notebook loads and keeps them."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import star_jax as sj
from star_jax.api import checks
from star_jax.api import model as model_module
from star_jax.api.model import TunedAdapter

GOLDEN = Path(__file__).parents[1] / "golden" / "llama"


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_is_loaded_by_path_by_name_and_from_home(model, tmp_path, monkeypatch):
    shutil.copytree(model.folder.path, tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (tmp_path / "mine", str(tmp_path / "mine"), "~/mine", Path("~/mine")):
        loaded = sj.load_model(place)
        assert loaded.name == str(place)
        assert_equal(loaded.weights.params, model.weights.params)


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        ("nowhere", {}, "no such folder"),
        ("embedded:nothing", {}, "no model of that name ships with the package"),
        ("embedded:skills", {"dtype": "float16"}, "dtype is 'float16'; choose from float32, bfloat16"),
        ("embedded:skills", {"quantization": "int4"}, "choose from none, int8, nf4"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(path, options, sentence):
    with pytest.raises(sj.ConfigError, match=sentence):
        sj.load_model(path, **options)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_comes_back_bit_for_bit(model, adapter, tmp_path, rslora):
    kept = TunedAdapter(adapter.weights, model.name, dropout=0.2, rslora=rslora)
    path = kept.save(tmp_path / "deep" / "adapter")
    loaded = sj.load_adapter(path, model)
    assert (loaded.base_model, loaded.dropout, loaded.rslora) == ("embedded:skills", 0.2, rslora)
    assert_equal(loaded.weights, adapter.weights)


def test_an_adapter_goes_to_home_and_replaces_an_earlier_one(model, adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    adapter.save("~/adapter")
    path = TunedAdapter(adapter.weights, model.name, dropout=0.5).save("~/adapter")
    assert path == tmp_path / "adapter"
    assert json.loads((path / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    assert sj.load_adapter("~/adapter", model).dropout == 0.5


def test_nothing_of_somebody_elses_is_overwritten(adapter, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(sj.ConfigError, match="is a file"):
        adapter.save(file)
    adapter.save(tmp_path / "adapter")
    (tmp_path / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(sj.ConfigError, match=r"holds notes\.txt, which would be lost"):
        adapter.save(tmp_path / "adapter")
    assert file.read_text() == (tmp_path / "adapter" / "notes.txt").read_text() == "mine"


def test_an_adapter_that_is_none_or_of_another_model_is_refused(model, tmp_path):
    with pytest.raises(sj.ConfigError, match="is no folder"):
        sj.load_adapter(tmp_path / "nowhere", model)
    with pytest.raises(sj.ConfigError, match=r"has no adapter_config\.json"):
        sj.load_adapter(tmp_path, model)
    with pytest.raises(sj.ConfigError, match="factors"):
        sj.load_adapter(GOLDEN / "adapter", model)


def test_weights_and_trainings_that_memory_does_not_hold_are_refused_before_they_are_made(model, pool, monkeypatch):
    monkeypatch.setattr(model_module, "load_weights", lambda *_, **__: pytest.fail("the weights were read"))
    monkeypatch.setattr(model_module, "memory_bytes", lambda: 10**5)
    with pytest.raises(sj.ConfigError, match=r"path is embedded:skills: its weights would take .* 0\.0 GB of memory"):
        sj.load_model("embedded:skills")
    monkeypatch.setattr(checks, "memory_bytes", lambda: 10**9)
    for settings in ({"lora": sj.LoraConfig(rank=10**7)}, {"training": sj.TrainingConfig(batch_size=10**8)}):
        with pytest.raises(sj.ConfigError, match=r"would take .* GB at the least"):
            sj.ActiveLoop(model, pool, **settings)
        with pytest.raises(sj.ConfigError, match=r"would take .* GB at the least"):
            sj.fit(model, pool, **settings)
