"""The command as a person uses it: machines that are not here, a model without weights, what cannot be planned."""

import json
import re
import shutil
from pathlib import Path

import pytest

from star_jax.cli import plan
from star_jax.cli.guard import guarded_main
from star_jax.planning.machines import known_machines

GSM8K = Path(__file__).parents[2] / "configs" / "gsm8k.yaml"


@pytest.fixture
def bare(tmp_path):
    """A folder with a configuration and a tokenizer, and no weights."""
    golden = Path(__file__).parents[1] / "golden" / "llama" / "model"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(golden / name, tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def as_the_tests_are_set(monkeypatch):
    monkeypatch.setattr("star_jax.environment.configure_jax", lambda: None)


def planned(capfd, *argv, folder=None):
    """Exit code, what was printed, what was said."""
    model = () if folder is None else ("--config", str(GSM8K), "--model.path", str(folder))
    code = guarded_main(plan.main, [*model, "--compile", "false", *argv])
    return code, *capfd.readouterr()


def test_a_folder_without_weights_and_no_data_is_enough(bare, capfd):
    code, shown, said = planned(capfd, "--on", "v5e-8", "--examples", "7473,1319", "--price-per-hour", "8", folder=bare)
    assert code == 0
    assert "v5e-8: 8 devices" in shown
    for name in ("base model on the pool", "3 dropout samples on the pool", "training", "model on the test set"):
        assert len(re.findall(rf"^ *{name} .*formula", shown, flags=re.MULTILINE)) == 1
    assert re.search(r"^price: .* at 8 an hour$", shown, flags=re.MULTILINE)
    assert "memory is by formula" in said
    assert sorted(path.name for path in bare.iterdir()) == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_rows_are_read_where_they_can_be(capfd, tmp_path):
    """The embedded benchmark, whose rows have few tokens; nothing is written."""
    output = tmp_path / "out"
    code, shown, _ = planned(capfd, "--on", "L4", "--output-dir", str(output))
    assert code == 0
    assert "price" not in shown
    assert "data 1 x fsdp 1" in shown
    assert not output.exists()


def test_what_does_not_fit_has_a_code_of_its_own_and_ways_out(bare, capfd):
    config = json.loads((bare / "config.json").read_text())
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128}
    (bare / "config.json").write_text(json.dumps(config | sizes | heads))
    code, shown, _ = planned(capfd, "--on", "v5e-1", "--examples", "600,9", "--loop.rounds", "2", folder=bare)
    assert code == 1
    assert "it does not fit" in shown
    assert "it would fit with --model.quantization" in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--on", "v9"), f"--on is 'v9', which is no machine that is known; choose {known_machines()}"),
        (
            ("--on", "v5e-8", "--examples", "7"),
            "--examples is 7; give rows of pool and test set, for example 7473,1319",
        ),
        (("--price-per-hour", "-1"), "--price-per-hour is -1.0; it must not be negative"),
        (("--on", "v5e-8", "--calibrate"), "--calibrate runs a program, which needs --on here"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(capfd, argv, said):
    assert planned(capfd, *argv) == (2, "", f"star_jax: error: {said}\n")


def test_data_that_cannot_be_read_may_be_left_out(bare, capfd):
    code, shown, said = planned(capfd, "--on", "v5e-8", "--data.train", str(bare / "none.csv"), folder=bare)
    assert (code, shown) == (2, "")
    assert said.endswith("; or plan without the data: --examples POOL,TEST\n")
