"""`python -m star_jax.export` as a person uses it, on the shipped model."""

import json

import jax
import numpy as np
import pytest

from star_jax.checkpoints import merge
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import load_model, save_model
from star_jax.checkpoints.peft import CONFIG_FILE, load_adapter, save_adapter
from star_jax.cli import export
from star_jax.cli.export import ExportConfig, parse_export
from star_jax.cli.guard import guarded_main
from star_jax.config import LoraConfig
from star_jax.errors import ConfigError
from star_jax.models.lora import init_adapter

BASE = "embedded:skills"


@pytest.fixture
def adapter(rng, tmp_path):
    """A PEFT folder whose two factors are random, on some layers' projections only."""
    model = load_model(BASE)
    targets = ("q_proj", "down_proj", r".*[.]layers[.]1[.].*")
    fresh = init_adapter(jax.random.key(0), model.params, LoraConfig(rank=4, targets=targets))
    scales = {name: np.asarray(entry["scale"])[:, None, None] for name, entry in fresh.scale["layers"].items()}
    weights = {
        name: {"a": factors["a"], "b": (scales[name] != 0) * rng.normal(size=factors["b"].shape).astype(np.float32)}
        for name, factors in fresh.weights["layers"].items()
    }
    folder = tmp_path / "adapter"
    save_adapter(fresh._replace(weights={"layers": weights}), folder, base_model=BASE, dropout=0.1)
    return folder


def test_the_adapters_tokenizer_and_chat_template_go_with_the_merged_model(adapter, tmp_path, capsys):
    """A template that was changed for the training is what the merged model has to be asked through."""
    load_tokenizer(BASE).save_pretrained(adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }} changed")
    out = tmp_path / "merged"
    assert export.main(["--adapter", str(adapter), "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(" file(s), with the adapter's tokenizer and chat template\n")
    assert load_tokenizer(str(out)).chat_template == "{{ messages[0].content }} changed"


@pytest.mark.parametrize("flags", [(), ("--max-shard-size", "0.0005")], ids=["one-file", "several"])
def test_the_merged_model_is_base_and_adapter_together(adapter, rng, forward, tmp_path, capsys, flags):
    out = tmp_path / "deep" / "merged"
    assert export.main(["--adapter", str(adapter), "--model", BASE, "--out", str(out), *flags]) == 0
    model, together = load_model(BASE), load_model(str(out))
    tokens = rng.integers(0, model.config.vocab_size, (3, 9)).astype(np.int32)
    lengths = np.asarray([9, 4, 1], np.int32)
    real = np.arange(9) < lengths[:, None]
    expected = np.asarray(forward(model, load_adapter(adapter, model.config)[0], tokens, lengths))[real]
    assert np.abs(np.asarray(forward(model, None, tokens, lengths))[real] - expected).max() > 0.1
    got = np.asarray(forward(together, None, tokens, lengths))[real]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert load_tokenizer(str(out)).get_vocab() == load_tokenizer(BASE).get_vocab()

    files = sorted(out.glob("*.safetensors"))
    assert len(files) == 1 if not flags else len(files) > 1
    shown = capsys.readouterr().out
    merged = len(list(json.loads((adapter / CONFIG_FILE).read_text())["target_modules"]))
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    assert shown.startswith(f"{out}: {merged} of ")
    assert f" {weights} bytes in {len(files)} file(s), with the base model's tokenizer\n" in shown
    assert shown.count("\n") == 1
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_the_base_is_the_one_that_the_adapter_names(adapter, tmp_path, capfd):
    assert export.main(["--adapter", str(adapter), "--out", str(tmp_path / "merged")]) == 0
    assert load_model(str(tmp_path / "merged")).config == load_model(BASE).config
    raw = json.loads((adapter / CONFIG_FILE).read_text())
    for named, sentence in ((None, "pass --model"), ("/no/such/model", "no such folder")):
        (adapter / CONFIG_FILE).write_text(json.dumps(raw | {"base_model_name_or_path": named}))
        assert guarded_main(export.main, ["--adapter", str(adapter), "--out", str(tmp_path / "again")]) == 2
        error = capfd.readouterr().err
        assert sentence in error
        assert str(adapter) in error


def test_what_is_there_is_never_overwritten(adapter, tmp_path, capfd):
    model = load_model(BASE)
    save_model(model, tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    flags = ["--adapter", str(adapter), "--model", str(tmp_path / "model")]
    for out, sentence in (
        ("full", "already"),
        ("full/thesis.txt", "already"),
        ("adapter/merged", "inside"),
        ("model/deep/merged", "inside"),
    ):
        assert guarded_main(export.main, [*flags, "--out", str(tmp_path / out)]) == 2
        assert sentence in capfd.readouterr().err
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert export.main([*flags, "--out", str(tmp_path / "empty")]) == 0
    assert (tmp_path / "empty" / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_an_export_that_ends_early_leaves_nothing(adapter, tmp_path, monkeypatch, capfd, error):
    """The weights are written and what follows fails."""

    def fail(source, target):
        assert target.suffix == ".safetensors"
        assert target.is_file()
        raise error

    monkeypatch.setattr(merge.shutil, "copymode", fail)
    out = tmp_path / "merged"
    assert guarded_main(export.main, ["--adapter", str(adapter), "--out", str(out)]) in (2, 130)
    assert ("No space left" in capfd.readouterr().err) is isinstance(error, OSError)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_mistakes_are_one_sentence(adapter, tmp_path, capfd):
    quantised = tmp_path / "quantised"
    save_model(load_model(BASE), quantised)
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    out = ["--out", str(tmp_path / "merged")]
    for flags, sentence in (
        (["--adapter", str(tmp_path / "nowhere")], "adapter_config.json"),
        (["--adapter", str(adapter), "--model", str(tmp_path / "nowhere")], "no such folder"),
        (["--adapter", str(adapter), "--model", str(quantised)], "quantization_config"),
    ):
        assert guarded_main(export.main, [*flags, *out]) == 2
        error = capfd.readouterr().err
        assert error.startswith("star_jax: error: ")
        assert sentence in error
        assert error.count("\n") == 1
    assert not (tmp_path / "merged").exists()


def test_flags():
    assert parse_export(["--adapter", "a", "--out", "b"]) == ExportConfig("a", "b", None, 5.0)
    given = parse_export(["--adapter=a", "--out", "b", "--model", "c", "--max-shard-size", "0.5"])
    assert given == ExportConfig("a", "b", "c", 0.5)
    with pytest.raises(SystemExit, match="2"):
        parse_export(["--adapter", "a"])
    with pytest.raises(ConfigError, match=r"--max-shard-size is 0\.0; it must be a positive number"):
        parse_export(["--adapter", "a", "--out", "b", "--max-shard-size", "0"])
