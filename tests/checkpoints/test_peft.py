"""Adapter folders: written and read back, and every kind of adapter that is not LoRA refused by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest
from random_models import PROJECTIONS
from safetensors.numpy import load_file, save_file

from star_jax.checkpoints.peft import CONFIG_FILE, WEIGHTS_FILE, load_adapter, read_peft, save_adapter
from star_jax.errors import ConfigError
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter

MakeAdapter = Callable[..., Adapter]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
SECOND = FIRST.replace("lora_A", "lora_B")


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


def test_an_adapter_of_a_model_of_images_names_its_modules_there(
    tiny_config: TransformerConfig, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config, module_root="model.language_model")
    adapter = make_adapter(config, targets=("q_proj", "up_proj"))
    save_adapter(adapter, tmp_path, base_model="somewhere", dropout=0.0, root=config.module_root)
    loaded, raw = load_adapter(tmp_path, config)
    chex.assert_trees_all_equal(loaded.weights, adapter.weights)
    stem = "model.language_model.layers"
    inside = [f"{stem}.{layer}.{name}" for layer in (0, 1) for name in ("mlp.up_proj", "self_attn.q_proj")]
    assert raw["target_modules"] == sorted(inside)
    assert set(load_file(tmp_path / WEIGHTS_FILE)) == {
        f"base_model.model.{path}.lora_{part}.weight" for path in inside for part in "AB"
    }


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
        ("use_qalora", True),
        ("use_bdlora", {"match": ["q_proj"]}),
        ("lora_bias", True),
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("use_something_newer", 0.5),
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
    with pytest.raises(
        ConfigError, match=rf"{CONFIG_FILE}: {field}.* not supported; LoRA and rsLoRA with patterns are"
    ):
        load_adapter(folder, tiny_config)


@pytest.mark.parametrize("value", [None, False, [], {}])
def test_kinds_that_are_not_asked_for_are_passed_over(
    tiny_config: TransformerConfig, adapter: Adapter, folder: Path, value: Any
) -> None:
    change_config(folder, use_dora=value, use_something_newer=value, modules_to_save=value, lora_bias=value)
    chex.assert_trees_all_equal(load_adapter(folder, tiny_config)[0].weights, adapter.weights)


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
    with pytest.raises(ConfigError, match=f"{CONFIG_FILE} is not valid JSON"):
        load_adapter(folder, tiny_config)


def test_missing_fields_are_named(tiny_config: TransformerConfig, folder: Path) -> None:
    raw = json.loads((folder / CONFIG_FILE).read_text())
    for field in ("r", "lora_alpha"):
        (folder / CONFIG_FILE).write_text(json.dumps({name: raw[name] for name in raw if name != field}))
        with pytest.raises(ConfigError, match=f"{CONFIG_FILE}: the field '{field}' is missing"):
            load_adapter(folder, tiny_config)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("lora_alpha", None, "the field 'lora_alpha' is null; a positive number is expected"),
        ("r", 0, "the field 'r' is 0; a positive number is expected"),
        ("rank_pattern", ["q_proj"], "rank_pattern is .*; an object of module patterns and numbers is expected"),
        ("alpha_pattern", {"q_proj": "big"}, "alpha_pattern is .*; an object of module patterns and numbers"),
        ("rank_pattern", {"(": 3}, r"rank_pattern has '\(', no regular expression"),
    ],
)
def test_malformed_fields_are_named(
    tiny_config: TransformerConfig, folder: Path, field: str, value: Any, sentence: str
) -> None:
    raw = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(raw | {field: value}))
    with pytest.raises(ConfigError, match=f"{CONFIG_FILE}: {sentence}"):
        load_adapter(folder, tiny_config)


def test_factors_that_are_not_finite_are_refused(tiny_config: TransformerConfig, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors[FIRST] = np.where(np.arange(tensors[FIRST].shape[1]) == 5, np.nan, tensors[FIRST]).astype(np.float32)
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(ConfigError, match=r"layers.0.self_attn.q_proj hold values that are not finite"):
        load_adapter(folder, tiny_config)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (
            lambda tensors: tensors.update({FIRST: tensors[FIRST][:, 1:]}),
            "the factors of model.layers.0.self_attn.q_proj are for a projection from 23 to 32; the model's is from 24",
        ),
        (
            lambda tensors: tensors.update({FIRST: tensors[FIRST][1:]}),
            rf"{SECOND} is of shape \(32, 3\), beside A of shape \(2, 24\); {CONFIG_FILE} says rank 3",
        ),
        (lambda tensors: tensors.pop(SECOND), f"{SECOND} is missing; {CONFIG_FILE} says rank 3"),
        (lambda tensors: tensors.pop(FIRST), f"tensors that are no LoRA factors: {SECOND}"),
        (
            lambda tensors: tensors.update({"base_model.model.lm_head.weight": np.ones((53, 24), np.float32)}),
            "tensors that are no LoRA factors: base_model.model.lm_head.weight",
        ),
        (
            lambda tensors: tensors.update(
                {
                    "base_model.model.lm_head.lora_A.weight": np.ones((3, 24), np.float32),
                    "base_model.model.lm_head.lora_B.weight": np.ones((53, 3), np.float32),
                }
            ),
            "factors for lm_head, and the model has no such projection; it has q_proj, .* paths such as model.layers.0",
        ),
        (lambda tensors: tensors.clear(), "tensors that are no LoRA factors: none"),
        (
            lambda tensors: (tensors.pop(FIRST), tensors.pop(SECOND)),
            "the factors of model.layers.0.self_attn.q_proj are missing, and .* has it among target_modules",
        ),
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


# rsLoRA, patterns, and modules that are not everywhere.


def write_peft(folder: Path, rng: np.random.Generator, ranks: dict[str, int], **fields: Any) -> dict[str, np.ndarray]:
    """A folder as PEFT would write it: module path -> rank; returns B A of each module, `in×out`."""
    tensors, products = {}, {}
    for path, rank in ranks.items():
        fan_in, features = SHAPES[path.rpartition(".")[2]]
        a, b = np.float32(rng.normal(size=(rank, fan_in))), np.float32(rng.normal(size=(features, rank)))
        tensors |= {f"base_model.model.{path}.lora_{name}.weight": factor for name, factor in (("A", a), ("B", b))}
        products[path] = (b.astype(np.float64) @ a).T
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 2.0} | fields))
    return products


SHAPES = {
    "q_proj": (24, 32),
    "k_proj": (24, 16),
    "v_proj": (24, 16),
    "o_proj": (32, 24),
    "gate_proj": (24, 40),
    "up_proj": (24, 40),
    "down_proj": (40, 24),
}
PATHS = [
    f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
    for layer in range(2)
    for name in PROJECTIONS
]


def assert_adds(adapter: Adapter, products: dict[str, np.ndarray], scales: dict[str, float]) -> None:
    """The adapter adds scale · A B to the modules of `products`, and nothing to others."""
    for path in PATHS:
        layer, name = int(path.split(".")[2]), path.rpartition(".")[2]
        if name not in adapter.weights["layers"]:
            assert path not in products
            continue
        a, b = (np.asarray(adapter.weights["layers"][name][factor][layer], np.float64) for factor in "ab")
        scale = float(adapter.scale["layers"][name]["scale"][layer])
        want = products.get(path, np.zeros(SHAPES[name])) * scales.get(path, 0.0)
        np.testing.assert_allclose(a @ b * scale, want, atol=1e-5)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2 / 3), (True, 2 / 3**0.5)])
def test_rslora_divides_by_the_root_of_the_rank(
    rng: np.random.Generator, tiny_config: TransformerConfig, tmp_path: Path, rslora: bool, scale: float
) -> None:
    products = write_peft(tmp_path, rng, dict.fromkeys(PATHS, 3), use_rslora=rslora, target_modules="all-linear")
    loaded, raw = load_adapter(tmp_path, tiny_config)
    assert_adds(loaded, products, dict.fromkeys(PATHS, scale))
    save_adapter(loaded, tmp_path / "again", base_model="somewhere", dropout=0.0, rslora=rslora)
    again, other = load_adapter(tmp_path / "again", tiny_config)
    chex.assert_trees_all_close(again, loaded, rtol=1e-6)
    assert (other["lora_alpha"], other["r"], other["use_rslora"]) == (raw["lora_alpha"], raw["r"], rslora)
    assert not other["rank_pattern"]
    assert not other["alpha_pattern"]


@pytest.mark.parametrize("rslora", [False, True])
def test_the_first_pattern_that_matches_a_path_or_its_end_is_taken(
    rng: np.random.Generator, tiny_config: TransformerConfig, tmp_path: Path, rslora: bool
) -> None:
    rank_pattern = {"layers.1.self_attn.q_proj": 5, "proj": 9, "q_proj": 2, r"model\.layers\.0\.mlp\..*": 4}
    alpha_pattern = {r".*\.1\.mlp\..*": 8.0, "mlp": 9.0, "(up|v)_proj": 6.0}
    ranks = dict.fromkeys(PATHS, 3) | {path: 4 for path in PATHS if "layers.0.mlp" in path}
    ranks |= {"model.layers.0.self_attn.q_proj": 2, "model.layers.1.self_attn.q_proj": 5}
    alphas = dict.fromkeys(PATHS, 2.0) | {path: 8.0 for path in PATHS if "layers.1.mlp" in path}
    alphas |= {f"model.layers.{path}": 6.0 for path in ("0.mlp.up_proj", "0.self_attn.v_proj", "1.self_attn.v_proj")}
    fields = {"rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern, "use_rslora": rslora}
    products = write_peft(tmp_path, rng, ranks, target_modules=list(PROJECTIONS), **fields)
    scales = {path: alphas[path] / ranks[path] ** (0.5 if rslora else 1) for path in PATHS}
    loaded, _ = load_adapter(tmp_path, tiny_config)
    assert_adds(loaded, products, scales)

    save_adapter(loaded, tmp_path / "again", base_model="somewhere", dropout=0.0, rslora=rslora)
    again, raw = load_adapter(tmp_path / "again", tiny_config)
    chex.assert_trees_all_close(again, loaded, rtol=1e-5)
    assert raw["r"] == 3
    assert raw["rank_pattern"] == {path: rank for path, rank in ranks.items() if rank != 3}
    assert raw["lora_alpha"] == 2.0
    assert raw["alpha_pattern"] == {path: alpha for path, alpha in alphas.items() if alpha != 2.0}
    shapes = {name: tensor.shape for name, tensor in load_file(tmp_path / "again" / WEIGHTS_FILE).items()}
    assert shapes == {name: tensor.shape for name, tensor in load_file(tmp_path / WEIGHTS_FILE).items()}


def test_a_rank_that_the_pattern_does_not_say_is_refused(
    rng: np.random.Generator, tiny_config: TransformerConfig, tmp_path: Path
) -> None:
    write_peft(tmp_path, rng, dict.fromkeys(PATHS, 3), rank_pattern={"o_proj": 4})
    with pytest.raises(ConfigError, match=rf"self_attn.o_proj.lora_B.weight is of shape .*; {CONFIG_FILE} says rank 4"):
        load_adapter(tmp_path, tiny_config)


SOME = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize(
    "targets",
    [
        SOME,
        r"model\.layers\.(0\.mlp\.up_proj|1\.(mlp\.down|self_attn\.q)_proj)",
        ["layers.0.mlp.up_proj", "1.mlp.down_proj", "layers.1.self_attn.q_proj"],
        None,
    ],
)
def test_modules_without_factors_are_left_as_they_are(
    rng: np.random.Generator, tiny_config: TransformerConfig, tmp_path: Path, targets: Any
) -> None:
    products = write_peft(tmp_path, rng, dict.fromkeys(SOME, 3), target_modules=targets)
    loaded, _ = load_adapter(tmp_path, tiny_config)
    assert set(loaded.weights["layers"]) == {"up_proj", "down_proj", "q_proj"}
    assert_adds(loaded, products, dict.fromkeys(SOME, 2 / 3))
    save_adapter(loaded, tmp_path / "again", base_model="somewhere", dropout=0.0)
    again, raw = load_adapter(tmp_path / "again", tiny_config)
    chex.assert_trees_all_equal(again.weights, loaded.weights)
    assert raw["target_modules"] == SOME


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["up_proj", "down_proj", "q_proj"], "layers_to_transform": [0, 1]},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    ],
)
def test_fields_that_take_targets_away_again_are_believed(
    rng: np.random.Generator, tiny_config: TransformerConfig, tmp_path: Path, fields: dict[str, Any]
) -> None:
    products = write_peft(tmp_path, rng, dict.fromkeys(SOME, 3), **fields)
    assert_adds(load_adapter(tmp_path, tiny_config)[0], products, dict.fromkeys(SOME, 2 / 3))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"], r".*\.q_proj"])
def test_targets_without_factors_are_named(
    rng: np.random.Generator, tiny_config: TransformerConfig, tmp_path: Path, targets: Any
) -> None:
    write_peft(tmp_path, rng, dict.fromkeys(SOME, 3), target_modules=targets)
    with pytest.raises(ConfigError, match=r"the factors of model.layers.0.self_attn.q_proj are missing, and"):
        load_adapter(tmp_path, tiny_config)


def test_an_adapter_that_was_never_trained_keeps_its_rank(
    tiny_config: TransformerConfig, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    fresh = make_adapter(tiny_config)
    zeros = {name: factors | {"b": 0 * factors["b"]} for name, factors in fresh.weights["layers"].items()}
    fresh = fresh._replace(weights={"layers": zeros})
    save_adapter(fresh, tmp_path, base_model="somewhere", dropout=0.0)
    chex.assert_trees_all_equal(load_adapter(tmp_path, tiny_config)[0].weights, fresh.weights)


def test_the_adapter_of_any_model_is_read_as_it_is(rng: np.random.Generator, tmp_path: Path) -> None:
    a, b = np.float16(rng.normal(size=(3, 7))), np.float16(rng.normal(size=(5, 3)))
    stem = "base_model.model.transformer.h.0.mix"
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA", "r": 3, "lora_alpha": 6}))
    raw, pairs = read_peft(tmp_path)
    assert raw["lora_alpha"] == 6
    assert list(pairs) == ["transformer.h.0.mix"]
    pair = pairs["transformer.h.0.mix"]
    assert pair.scale == 2
    assert pair.a.dtype == pair.b.dtype == np.float32
    np.testing.assert_array_equal(pair.a, a)
    np.testing.assert_array_equal(pair.b, b)
