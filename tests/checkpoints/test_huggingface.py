"""Model folders: written and read back, and what is wrong with a folder said in one sentence."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from star_jax.checkpoints import tensors as tensors_module
from star_jax.checkpoints.files import INDEX_FILE, SINGLE_FILE
from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.huggingface import (
    LanguageModel,
    load_model,
    save_model,
)
from star_jax.checkpoints.tensor_shapes import tensor_shapes
from star_jax.checkpoints.tensors import TensorReader, all_finite
from star_jax.errors import ConfigError
from star_jax.models.architecture import Architecture, TransformerConfig
from star_jax.models.rotary import Rope
from star_jax.ops.quantization import Quantization, quantize

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
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_kernels_are_stored_transposed_under_their_names(tiny_model: LanguageModel, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for layer in range(tiny_model.config.num_hidden_layers):
        kernel = np.asarray(tiny_model.params["layers"]["k_proj"]["kernel"][layer])
        np.testing.assert_array_equal(tensors[f"model.layers.{layer}.self_attn.k_proj.weight"], kernel.T)
    assert len(tensors) == 3 + 9 * tiny_model.config.num_hidden_layers


def split_in_two(folder: Path, *, index: bool) -> None:
    tensors = load_file(folder / SINGLE_FILE)
    (folder / SINGLE_FILE).unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    place = {name: files[number % 2] for number, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({name: tensors[name] for name in tensors if place[name] == file}, folder / file)
    if index:
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": place}))


@pytest.mark.parametrize("index", [True, False])
def test_weights_in_several_files_are_read_together(tiny_model: LanguageModel, folder: Path, index: bool) -> None:
    split_in_two(folder, index=index)
    chex.assert_trees_all_equal(load_model(str(folder)).params, tiny_model.params)


@pytest.mark.parametrize("index", [True, False])
def test_the_same_weights_under_other_names_are_left_alone(
    tiny_model: LanguageModel, folder: Path, index: bool
) -> None:
    """Some folders hold a second copy, as its authors first wrote it."""
    if index:
        split_in_two(folder, index=True)
    save_file({"layers.0.attention.wq.weight": np.ones((2, 2), np.float32)}, folder / "consolidated.safetensors")
    chex.assert_trees_all_equal(load_model(str(folder)).params, tiny_model.params)


def test_a_file_that_the_index_names_must_be_there(folder: Path) -> None:
    split_in_two(folder, index=True)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=rf"{INDEX_FILE} names model-00002-of-00002.safetensors, which is not there; fetch it again"
    ):
        load_model(str(folder))


def test_tensors_are_read_one_by_one_in_their_own_type(folder: Path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones(4, np.float32)}
    save_file(tensors, folder / SINGLE_FILE)
    with TensorReader(folder) as reader:
        assert reader.names == ["a", "b"]
        assert reader.shape("b") == (2, 3)
        assert reader.read("b").dtype == np.float16
        np.testing.assert_array_equal(reader.expect("b", (2, 3)), tensors["b"])


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
            lambda tensors: tensors.update({LAST: tensors[LAST].astype(np.int8)}),
            f"the tensor {LAST} is stored as I8; quantised weights are not read",
        ),
        (
            lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": np.ones(8, np.float32)}),
            "the tensors model.layers.0.self_attn.q_norm.weight are not part of what config.json says",
        ),
        (
            lambda tensors: tensors.update({"model.layers.2.input_layernorm.weight": np.ones(24, np.float32)}),
            "the tensors model.layers.2.input_layernorm.weight are not part of what config.json says",
        ),
    ],
)
def test_wrong_tensors_are_named(folder: Path, edit: Callable[[dict[str, np.ndarray]], Any], sentence: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=sentence):
        load_model(str(folder))


def test_experts_in_one_tensor_are_refused_with_the_way_out(folder: Path) -> None:
    change_config(folder, model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
    tensors = load_file(folder / SINGLE_FILE)
    save_file(tensors | {"model.layers.0.mlp.experts.gate_up_proj": np.ones((4, 16, 24))}, folder / SINGLE_FILE)
    with pytest.raises(ConfigError, match=r"experts.gate_up_proj holds all experts of a layer, .* save_pretrained"):
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


# What the files say, and config.json does not.


@pytest.fixture
def tied(make_model: MakeModel, tiny_config: TransformerConfig, tmp_path: Path) -> Path:
    save_model(make_model(dataclasses.replace(tiny_config, tie_word_embeddings=True)), tmp_path)
    return tmp_path


def change_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    tensors = {**load_file(folder / SINGLE_FILE), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / SINGLE_FILE)


@pytest.mark.parametrize("row", [0, 20, 52])
def test_a_head_of_its_own_is_used_though_config_says_tied(
    tied: Path, row: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors_module, "ROWS_AT_ONCE", 100)
    head = load_file(tied / SINGLE_FILE)["model.embed_tokens.weight"].copy()
    head[row, 3] += 1
    change_tensors(tied, **{"lm_head.weight": head})
    model = load_model(str(tied))
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.params["lm_head"], head)
    assert [record.getMessage().partition(": ")[2][:58] for record in caplog.records] == [
        "config.json says that the head is the embedding (tie_word_"
    ]


def test_of_two_that_are_tied_either_may_be_there(tied: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load_model(str(tied))
    embedding = load_file(tied / SINGLE_FILE)["model.embed_tokens.weight"]
    change_tensors(tied, **{"lm_head.weight": embedding, "model.embed_tokens.weight": None})
    chex.assert_trees_all_equal(load_model(str(tied)).params, before.params)
    assert not caplog.records


def test_a_single_file_is_read_rather_than_an_index_beside_it(tiny_model: LanguageModel, folder: Path) -> None:
    """As Transformers does; the shards may be those of an earlier checkpoint."""
    split_in_two(folder, index=True)
    save_model(jax.tree.map(lambda leaf: 2 * leaf, tiny_model), folder)
    chex.assert_trees_all_equal(load_model(str(folder)).params, jax.tree.map(lambda leaf: 2 * leaf, tiny_model.params))


@pytest.mark.parametrize("where", [("model.embed_tokens.weight", 5), (LAST, 3), ("model.norm.weight", 0)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_named(folder: Path, where: tuple[str, int], value: float, dtype: Any) -> None:
    name, place = where
    tensors = {key: tensor.astype(dtype) for key, tensor in load_file(folder / SINGLE_FILE).items()}
    tensors[name].reshape(-1)[place] = value
    save_file(tensors, folder / SINGLE_FILE)
    with pytest.raises(ConfigError, match=f"the tensor {name} holds values that are not finite; the file is damaged"):
        load_model(str(folder))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_the_largest_numbers_are_finite(dtype: Any) -> None:
    most = float(ml_dtypes.finfo(dtype).max)
    for shape in ((3, 5), (7,), ()):
        assert all_finite(np.full(shape, most, dtype))
        assert all_finite(np.full(shape, -most, dtype))
        assert not all_finite(np.full(shape, np.nan, dtype))


def test_a_config_of_another_width_is_noticed(folder: Path) -> None:
    change_config(folder, vocab_size=54)
    sentence = r"model.embed_tokens.weight has shape \(53, 24\); config.json says \(54, 24\)"
    with pytest.raises(ConfigError, match=sentence):
        load_model(str(folder))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / SINGLE_FILE).rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ConfigError, match=r"no \*.safetensors file; it has pytorch_model.bin, and pickled weights are not read because"
    ):
        load_model(str(folder))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b""])
def test_weights_that_are_cut_or_a_pointer_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model.safetensors cannot be read: .*; fetch the whole file again"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "part",
    [
        {"architecture": Architecture(qk_norm="head")},
        {"windows": (3, None)},
        {"ropes": (Rope(500.0, (2.0,) * 4),)},
        {"ropes": (Rope(500.0), Rope(20.0)), "layer_ropes": (0, 1)},
        {"ropes": (Rope(500.0, factor=1.1),)},
        {"attention_scale": 0.3},
        {"attention_softcap": 5.0},
        {"logit_softcap": 5.0},
    ],
)
def test_more_than_a_plain_llama_is_not_written(
    make_model: MakeModel, tiny_config: TransformerConfig, tmp_path: Path, part: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="only plain Llama models can be written"):
        save_model(make_model(dataclasses.replace(tiny_config, **part)), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Other families.

RAW = {
    "vocab_size": 53,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
PRE = {"pre_attention_norm": "input_layernorm", "pre_mlp_norm": "post_attention_layernorm"}
POST = {"post_attention_norm": "post_attention_layernorm", "post_mlp_norm": "post_feedforward_layernorm"}
BOTH = {
    "pre_attention_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "pre_mlp_norm": "pre_feedforward_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
}
QK = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
FAMILY_NORMS = {
    "llama": PRE,
    "mistral": PRE,
    "smollm3": PRE,
    "qwen2": PRE,
    "qwen3": PRE | QK,
    "phi3": PRE,
    "olmo2": POST | QK,
    "gemma2": BOTH,
    "gemma3_text": BOTH | QK,
    "gemma": PRE,
    "granite": PRE,
    "ministral": PRE,
    "ministral3": PRE,
    "mixtral": PRE,
    "qwen3_moe": PRE | QK,
    "olmo3": POST | QK,
    "seed_oss": PRE,
    "exaone4": POST | QK,
    "glm4": {
        "pre_attention_norm": "input_layernorm",
        "post_attention_norm": "post_self_attn_layernorm",
        "pre_mlp_norm": "post_attention_layernorm",
        "post_mlp_norm": "post_mlp_layernorm",
    },
}
"""Norms of a block under the names that Transformers' modules have."""


EXPERT_NAMES = {
    "mixtral": ("block_sparse_moe", "w1", "w3", "w2"),
    "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
}
"""Modules of the router and of an expert, as published folders have them."""


def family_folder(folder: Path, make_model: MakeModel, kind: str, **fields: Any) -> LanguageModel:
    """Writes a random model of a family with the names and layout of Transformers; returns it."""
    (folder / "config.json").write_text(json.dumps(RAW | {"model_type": kind} | fields))
    model = make_model(read_config(folder, "float32"))
    params = jax.tree.map(np.asarray, model.params)
    tensors = {"model.embed_tokens.weight": params["embed_tokens"]["embedding"]}
    tensors["model.norm.weight"] = params["norm"]["scale"]
    tensors |= {"lm_head.weight": params["lm_head"]} if "lm_head" in params else {}
    experts = params["layers"].pop("experts", None)
    if experts is not None:
        root, gate, up, down = EXPERT_NAMES[kind]
        for layer, router in enumerate(experts["router"]):
            tensors[f"model.layers.{layer}.{root}.gate.weight"] = router.T
            for number in range(router.shape[1]):
                stem, gate_up = f"model.layers.{layer}.{root}.experts.{number}", experts["gate_up"][layer, number].T
                tensors[f"{stem}.{gate}.weight"], tensors[f"{stem}.{up}.weight"] = np.split(gate_up, 2)
                tensors[f"{stem}.{down}.weight"] = experts["down"][layer, number].T
    for name, leaves in params["layers"].items():
        inside = f"{'self_attn' if name[:-5] in ('q', 'k', 'v', 'o', 'qkv') else 'mlp'}.{name}"
        for leaf, stack in leaves.items():
            path = f"{FAMILY_NORMS[kind].get(name, inside)}.{'bias' if leaf == 'bias' else 'weight'}"
            tensors |= {f"model.layers.{layer}.{path}": part.T for layer, part in enumerate(stack)}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / SINGLE_FILE)
    return model


@pytest.mark.parametrize("kind", FAMILY_NORMS)
def test_every_family_is_loaded(make_model: MakeModel, tmp_path: Path, kind: str) -> None:
    fields = {"attention_bias": True, "mlp_bias": True} if kind == "smollm3" else {}
    fields |= {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 12} if kind == "qwen3_moe" else {}
    fields |= {"num_local_experts": 3} if kind == "mixtral" else {}
    model = family_folder(tmp_path, make_model, kind, **fields)
    loaded = load_model(str(tmp_path))
    assert loaded.config == model.config
    chex.assert_trees_all_equal(loaded.params, model.params)
    stored = {name: tensor.shape for name, tensor in load_file(tmp_path / SINGLE_FILE).items()}
    assert tensor_shapes(model.config) == stored


@pytest.mark.parametrize("layout", ["model.language_model.", "language_model.model."])
def test_the_decoder_of_a_model_of_images_is_loaded(make_model: MakeModel, tmp_path: Path, layout: str) -> None:
    """Under the names that today's modules have, and under those that files have."""
    model = family_folder(tmp_path, make_model, "mistral")
    head = "lm_head.weight" if layout.startswith("model.") else "language_model.lm_head.weight"
    tensors = {
        head if name == "lm_head.weight" else name.replace("model.", layout, 1): tensor
        for name, tensor in load_file(tmp_path / SINGLE_FILE).items()
    }
    prefix = "model." if layout.startswith("model.") else ""
    images = {f"{prefix}vision_tower.a.weight", f"{prefix}multi_modal_projector.b.weight"}
    save_file(tensors | dict.fromkeys(images, np.ones(3, np.float32)), tmp_path / SINGLE_FILE)
    raw = {"model_type": "mistral3", "text_config": RAW | {"model_type": "mistral"}, "vision_config": {}}
    raw["vision_config"] = {"model_type": "pixtral"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    loaded = load_model(str(tmp_path))
    assert loaded.config == dataclasses.replace(model.config, module_root="model.language_model")
    chex.assert_trees_all_equal(loaded.params, model.params)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_experts_are_quantised_as_projections_are(make_model: MakeModel, tmp_path: Path, kind: Quantization) -> None:
    model = family_folder(tmp_path, make_model, "mixtral", num_local_experts=3)
    loaded = load_model(str(tmp_path), quantization=kind).params["layers"]["experts"]
    for name in ("gate_up", "down"):
        chex.assert_trees_all_equal(loaded[name], quantize(model.params["layers"]["experts"][name], kind))


BIAS = "model.layers.1.self_attn.k_proj.bias"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda tensors: tensors.pop(BIAS), f"the tensor {BIAS} is missing"),
        (
            lambda tensors: tensors.update({BIAS: np.ones(17, np.float32)}),
            rf"{BIAS} has shape \(17,\); .* says \(16,\)",
        ),
        (
            lambda tensors: tensors.update({BIAS.replace("k_proj", "o_proj"): np.ones(24, np.float32)}),
            "the tensors model.layers.1.self_attn.o_proj.bias are not part of what config.json says",
        ),
    ],
)
def test_wrong_biases_are_named(
    make_model: MakeModel, tmp_path: Path, edit: Callable[[dict[str, np.ndarray]], Any], sentence: str
) -> None:
    family_folder(tmp_path, make_model, "qwen2")
    tensors = load_file(tmp_path / SINGLE_FILE)
    edit(tensors)
    save_file(tensors, tmp_path / SINGLE_FILE)
    with pytest.raises(ConfigError, match=sentence):
        load_model(str(tmp_path))


def test_biases_that_a_config_does_not_name_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    family_folder(tmp_path, make_model, "llama", attention_bias=True)
    change_config(tmp_path, attention_bias=False)
    with pytest.raises(ConfigError, match=r"the tensors model.layers.0.self_attn.k_proj.bias, .* are not part of what"):
        load_model(str(tmp_path))


# Several devices.

PLACED = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from star_jax.checkpoints.huggingface import load_model

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_disable_most_optimizations", True)
mesh = Mesh(np.asarray(jax.devices()), ("model",))
asked = set()


def placement(name, shape):
    axes = [None] * len(shape)
    if len(shape) == 3 and shape[-1] % 4 == 0:
        axes[-1] = "model"
    asked.add(name)
    return NamedSharding(mesh, PartitionSpec(*axes))


for kind in ("none", "nf4"):
    placed, plain = (load_model(sys.argv[1], quantization=kind, placement=p) for p in (placement, None))
    for (path, leaf), want in zip(jax.tree.leaves_with_path(placed.params), jax.tree.leaves(plain.params)):
        assert leaf.sharding.is_equivalent_to(placement("", leaf.shape), leaf.ndim), (path, leaf.sharding)
        np.testing.assert_array_equal(leaf, want)
    for leaf in jax.tree.leaves(placed.params["layers"]["gate_proj"]["kernel"]):
        assert {shard.data.shape[-1] for shard in leaf.addressable_shards} == {leaf.shape[-1] // 4}
    assert {"embed_tokens", "lm_head", "norm", "layers.gate_proj.kernel", "layers.pre_mlp_norm"} <= asked, asked
"""


def test_parameters_are_put_where_they_are_wanted(folder: Path) -> None:
    """In a process of its own: the number of devices is set once."""
    done = subprocess.run([sys.executable, "-c", PLACED, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
