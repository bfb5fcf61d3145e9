"""Merged checkpoints against sums in float64, in files of the sizes asked for, and what cannot be merged."""

import json
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from star_jax.checkpoints.files import INDEX_FILE, SINGLE_FILE
from star_jax.checkpoints.merge import merged, plan_merge, write_merged
from star_jax.checkpoints.peft import Pair
from star_jax.errors import ConfigError

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
MODULES = {"tower.0.mix.inner": (12, 7), "tower.0.mix.outer": (7, 12), "tower.1.mix.inner": (12, 7), "lm_head": (30, 7)}
EVERYTHING = 10**9


def make_base(folder, rng, dtype="bfloat16", **config):
    """A checkpoint of no family that is known, with a norm and an embedding beside its modules."""
    folder.mkdir()
    shapes = {f"{path}.weight": shape for path, shape in MODULES.items()}
    shapes |= {"tower.0.norm.weight": (7,), "embedding.weight": (30, 7)}
    tensors = {name: rng.normal(size=shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}
    save_file(tensors, folder / SINGLE_FILE)
    (folder / "config.json").write_text(json.dumps({"model_type": "unheard-of"} | config))
    return tensors


def make_pair(rng, path, rank=3):
    features, width = MODULES[path]
    a, b = rng.normal(size=(rank, width)), rng.normal(size=(features, rank))
    return Pair(a.astype(np.float32), b.astype(np.float32), float(rng.uniform(0.2, 2)))


def summed(weight, pair):
    """Weight and product in float64, entry by entry."""
    total = weight.astype(np.float64)
    for row in range(total.shape[0]):
        for column in range(total.shape[1]):
            for inner in range(len(pair.a)):
                total[row, column] += pair.scale * float(pair.b[row, inner]) * float(pair.a[inner, column])
    return total


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_added_to_its_module_and_to_no_other(rng, tmp_path, dtype):
    tensors = make_base(tmp_path / "base", rng, dtype)
    pairs = {path: make_pair(rng, path, rank) for path, rank in (("tower.0.mix.inner", 2), ("tower.1.mix.inner", 4))}
    plan = plan_merge(tmp_path / "base", pairs, EVERYTHING)
    assert plan.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
    (tmp_path / "out").mkdir()
    write_merged(plan, tmp_path / "out")
    written = load_file(tmp_path / "out" / SINGLE_FILE)
    assert set(written) == set(tensors)
    for name, tensor in written.items():
        assert tensor.dtype == DTYPES[dtype]
        path = name.removesuffix(".weight")
        if path in pairs:
            # One rounding to the stored type, and those of float32 sums before it.
            expected = summed(tensors[name], pairs[path])
            error = np.abs(tensor.astype(np.float64) - expected)
            assert (error <= ml_dtypes.finfo(DTYPES[dtype]).eps * np.abs(expected) / 2 + 1e-5).all()
        else:
            assert tensor.tobytes() == tensors[name].tobytes()


def test_sums_are_rounded_once(rng):
    """Many small products that bfloat16 would lose one by one are there in the sum."""
    weight = np.ones((1, 1), ml_dtypes.bfloat16)
    pair = Pair(np.full((64, 1), 2**-10, np.float32), np.ones((1, 64), np.float32), 1.0)
    assert merged(weight, pair).astype(np.float32) == 1 + 2**-4


def test_large_models_are_written_in_files_of_the_size_asked_for(rng, tmp_path):
    tensors = make_base(tmp_path / "base", rng)
    pairs = {"lm_head": make_pair(rng, "lm_head")}
    largest = tensors["embedding.weight"].nbytes + 10
    plan = plan_merge(tmp_path / "base", pairs, largest)
    (tmp_path / "out").mkdir()
    write_merged(plan, tmp_path / "out")
    files = sorted(tmp_path.glob("out/*.safetensors"))
    count = len(files)
    assert count > 2
    assert [file.name for file in files] == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    assert not (tmp_path / "out" / SINGLE_FILE).exists()
    held = {file.name: load_file(file) for file in files}
    assert all(sum(tensor.nbytes for tensor in part.values()) <= largest for part in held.values())
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert index["weight_map"] == {name: file for file, part in held.items() for name in part}
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    # A base in several files gives the same tensors again, in one file.
    (tmp_path / "again").mkdir()
    write_merged(plan_merge(Path(tmp_path / "out"), {}, EVERYTHING), tmp_path / "again")
    again = load_file(tmp_path / "again" / SINGLE_FILE)
    assert {name: tensor.tobytes() for name, tensor in again.items()} == {
        name: tensor.tobytes() for part in held.values() for name, tensor in part.items()
    }


def test_memory_holds_one_file_at_a_time(rng, tmp_path):
    side, count = 256, 16
    weights = {f"{i}.weight": rng.normal(size=(side, side)).astype(ml_dtypes.bfloat16) for i in range(count)}
    each = side * side * 2
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / SINGLE_FILE)
    (tmp_path / "base" / "config.json").write_text("{}")
    factor = rng.normal(size=(4, side)).astype(np.float32)
    pairs = {str(i): Pair(factor, factor.T, 1.0) for i in range(count)}
    plan = plan_merge(tmp_path / "base", pairs, 2 * each)
    assert len(plan.files) == count // 2
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    write_merged(plan, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One file of two tensors, one tensor as read, and it and its product in float32; not the other seven files.
    assert peak < (2 + 1 + 2 * 2 + 1) * each < count * each


def test_what_belongs_to_the_model_is_copied(rng, tmp_path):
    base = tmp_path / "base"
    make_base(base, rng)
    kept = ("generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja")
    kept += ("additional_chat_templates/tools.jinja", "LICENSE.txt")
    other = ("pytorch_model.bin", "pytorch_model.bin.index.json", "optimizer.pt", "trainer_state.json", "README.md")
    (base / "additional_chat_templates").mkdir()
    for name in (*kept, *other):
        (base / name).write_text(f"{name} {rng.integers(1000)}")
    (tmp_path / "out").mkdir()
    write_merged(plan_merge(base, {}, EVERYTHING), tmp_path / "out")
    for name in ("config.json", *kept):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert modes == {(base / "config.json").stat().st_mode}
    assert not any((tmp_path / "out" / name).exists() for name in other)


def test_a_module_that_the_base_has_not_is_named_beside_some_it_has(rng, tmp_path):
    make_base(tmp_path / "base", rng)
    pair = make_pair(rng, "tower.0.mix.inner")
    with pytest.raises(ConfigError, match=r"factors for tower\.7\.mix\.inner.* it has tower\.\d\.mix\.inner, "):
        plan_merge(tmp_path / "base", {"tower.7.mix.inner": pair}, EVERYTHING)
    with pytest.raises(ConfigError, match=r"tower\.0\.mix\.outer make a weight of shape \(12, 7\); .* has \(7, 12\)"):
        plan_merge(tmp_path / "base", {"tower.0.mix.outer": pair}, EVERYTHING)


@pytest.mark.parametrize("stored", ["language_model.model.layers.0.q", "model.language_model.layers.0.q"])
def test_modules_of_a_language_model_inside_another_are_found_under_either_name(rng, tmp_path, stored):
    base, weight = tmp_path / "base", rng.normal(size=(6, 5)).astype(np.float32)
    base.mkdir()
    save_file({f"{stored}.weight": weight, "vision_tower.q.weight": weight}, base / SINGLE_FILE)
    (base / "config.json").write_text(json.dumps({"model_type": "outer", "text_config": {"model_type": "inner"}}))
    pair = Pair(rng.normal(size=(2, 5)).astype(np.float32), rng.normal(size=(6, 2)).astype(np.float32), 0.5)
    for path in ("model.language_model.layers.0.q", "language_model.model.layers.0.q", "model.layers.0.q"):
        plan = plan_merge(base, {path: pair}, EVERYTHING)
        (tmp_path / path).mkdir()
        write_merged(plan, tmp_path / path)
        written = load_file(tmp_path / path / SINGLE_FILE)
        np.testing.assert_allclose(written[f"{stored}.weight"], summed(weight, pair), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(written["vision_tower.q.weight"], weight)


@pytest.mark.parametrize("said", [True, False])
def test_a_head_that_the_embedding_shares_is_refused(rng, tmp_path, said):
    base = tmp_path / "base"
    tensors = make_base(base, rng, tie_word_embeddings=said)
    if not said:
        save_file(tensors | {"embedding.weight": tensors["lm_head.weight"]}, base / SINGLE_FILE)
    with pytest.raises(ConfigError, match="lm_head, which is one with the embedding"):
        plan_merge(base, {"lm_head": make_pair(rng, "lm_head")}, EVERYTHING)


def test_quantised_bases_are_refused(rng, tmp_path):
    make_base(tmp_path / "base", rng, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(ConfigError, match="quantization_config"):
        plan_merge(tmp_path / "base", {}, EVERYTHING)


def test_weights_that_cannot_hold_the_sum_are_refused(rng, tmp_path):
    tensors = make_base(tmp_path / "base", rng, "float16")
    path = "tower.0.mix.inner"
    pair = make_pair(rng, path)
    (tmp_path / "out").mkdir()
    huge = plan_merge(tmp_path / "base", {path: pair._replace(scale=1e6)}, EVERYTHING)
    with pytest.raises(ConfigError, match=rf"{path}\.weight is not finite as float16"):
        write_merged(huge, tmp_path / "out")
    codes = tensors | {f"{path}.weight": np.ones(MODULES[path], np.int8)}
    save_file(codes, tmp_path / "base" / SINGLE_FILE)
    with pytest.raises(ConfigError, match="stored as int8"):
        write_merged(plan_merge(tmp_path / "base", {path: pair}, EVERYTHING), tmp_path / "out")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        plan_merge(tmp_path, {}, EVERYTHING)
