"""Adapter folders: written and read back, and every kind of adapter that is not plain LoRA refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from star_jax.config import PROJECTIONS, ConfigError
from star_jax.models.lora import Adapter
from star_jax.models.peft_format import CONFIG_FILE, WEIGHTS_FILE, load_adapter, save_adapter
from star_jax.models.transformer import TransformerConfig

MakeAdapter = Callable[..., Adapter]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("targets", [PROJECTIONS, ("o_proj", "up_proj")])
def test_what_is_saved_is_loaded(
    tiny_config: TransformerConfig, make_adapter: MakeAdapter, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    adapter = make_adapter(tiny_config, targets=targets)
    save_adapter(adapter, tmp_path / "round" / "adapter", base_model="somewhere", dropout=0.1)
    loaded, raw = load_adapter(tmp_path / "round" / "adapter", tiny_config)
    chex.assert_trees_all_equal(loaded.weights, adapter.weights)
    chex.assert_trees_all_close(loaded.scale, adapter.scale, rtol=1e-6)
    chex.assert_trees_all_equal_dtypes(loaded, adapter)
    assert raw["base_model_name_or_path"] == "somewhere"
    assert raw["lora_dropout"] == 0.1
    assert raw["lora_alpha"] == pytest.approx(0.75 * 3)
    assert set(raw["target_modules"]) == set(targets)


@pytest.fixture
def adapter(tiny_config: TransformerConfig, make_adapter: MakeAdapter) -> Adapter:
    return make_adapter(tiny_config)


@pytest.fixture
def folder(adapter: Adapter, tmp_path: Path) -> Path:
    save_adapter(adapter, tmp_path, base_model="somewhere", dropout=0.1)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_factors_are_stored_transposed_under_their_names(adapter: Adapter, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    factors = adapter.weights["layers"]["down_proj"]
    stem = "base_model.model.model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(tensors[f"{stem}.lora_A.weight"], np.asarray(factors["a"][1]).T)
    np.testing.assert_array_equal(tensors[f"{stem}.lora_B.weight"], np.asarray(factors["b"][1]).T)
    assert len(tensors) == 2 * 2 * len(PROJECTIONS)


def test_narrow_factors_are_widened(tiny_config: TransformerConfig, adapter: Adapter, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    loaded, _ = load_adapter(folder, tiny_config)
    chex.assert_trees_all_equal_dtypes(loaded, adapter)
    chex.assert_trees_all_close(loaded.weights, adapter.weights, atol=1e-2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("use_rslora", True),
        ("use_qalora", True),
        ("use_bdlora", {"match": ["q_proj"]}),
        ("lora_bias", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("rank_pattern", {"q_proj": 4}),
        ("alpha_pattern", {"q_proj": 4}),
        ("modules_to_save", ["lm_head"]),
        ("layers_to_transform", [1]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("target_parameters", ["mlp.weight"]),
        ("trainable_token_indices", [3]),
        ("alora_invocation_tokens", [3]),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("peft_type", "LOHA"),
    ],
)
def test_other_kinds_are_refused_by_name(tiny_config: TransformerConfig, folder: Path, field: str, value: Any) -> None:
    change_config(folder, **{field: value})
    with pytest.raises(ConfigError, match=rf"{CONFIG_FILE}: {field}.* not supported; plain LoRA is"):
        load_adapter(folder, tiny_config)


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_initial_values_that_leave_the_base_alone_are_read(
    tiny_config: TransformerConfig, adapter: Adapter, folder: Path, init: bool | str
) -> None:
    change_config(folder, init_lora_weights=init)
    chex.assert_trees_all_equal(load_adapter(folder, tiny_config)[0].weights, adapter.weights)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_missing_files_are_named(tiny_config: TransformerConfig, folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=f"has no {name}; an adapter is a PEFT folder with that file"):
        load_adapter(folder, tiny_config)


def test_broken_files_are_named(tiny_config: TransformerConfig, folder: Path) -> None:
    (folder / WEIGHTS_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=f"{WEIGHTS_FILE} cannot be read: .*; fetch the whole file again"):
        load_adapter(folder, tiny_config)
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(ConfigError, match=f"{CONFIG_FILE} is not valid JSON: "):
        load_adapter(folder, tiny_config)


def test_missing_fields_are_named(tiny_config: TransformerConfig, folder: Path) -> None:
    raw = json.loads((folder / CONFIG_FILE).read_text())
    for field in ("r", "lora_alpha"):
        (folder / CONFIG_FILE).write_text(json.dumps({name: raw[name] for name in raw if name != field}))
        with pytest.raises(ConfigError, match=f"{CONFIG_FILE}: the field '{field}' is missing"):
            load_adapter(folder, tiny_config)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda tensors: tensors.update({FIRST: tensors[FIRST][:, 1:]}),
            rf"the tensor {FIRST} is of shape \(3, 23\); \(3, 24\) is expected",
        ),
        (
            lambda tensors: tensors.pop(FIRST.replace("lora_A", "lora_B")),
            f"the tensor {FIRST.replace('lora_A', 'lora_B')} is missing",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.lora_A.weight": np.ones((3, 24), np.float32)}),
            "tensors that match no projection of the model: base_model.model.lm_head.lora_A.weight",
        ),
        (lambda tensors: tensors.clear(), "match no projection of the model"),
    ],
)
def test_wrong_tensors_are_named(
    tiny_config: TransformerConfig, folder: Path, edit: Callable[[dict[str, np.ndarray]], Any], sentence: str
) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(ConfigError, match=sentence):
        load_adapter(folder, tiny_config)


def test_an_adapter_of_mixed_scale_or_rank_is_not_written(
    tiny_config: TransformerConfig, make_adapter: MakeAdapter, adapter: Adapter, tmp_path: Path
) -> None:
    scaled = {**adapter.scale["layers"], "k_proj": {"scale": jnp.asarray([0.75, 0.5])}}
    wider = make_adapter(tiny_config, targets=("k_proj",), rank=4).weights["layers"]
    mixed = {"layers": {**adapter.weights["layers"], **wider}}
    for wrong in (adapter._replace(scale={"layers": scaled}), adapter._replace(weights=mixed)):
        with pytest.raises(ConfigError, match="whose layers differ in rank or scale cannot be written as plain LoRA"):
            save_adapter(wrong, tmp_path / "mixed", base_model="somewhere", dropout=0.0)
    assert not (tmp_path / "mixed").exists()
