"""Merged checkpoints: a base model's folder once more, with an adapter's products added to its weights.

Nothing here knows a family: an adapter names modules, a checkpoint has a tensor `MODULE.weight` for each of them. What
is written is planned from the files' headers alone, and refused there, before the first weight is read.

Shapes: `O` and `I` output and input width of a module, `r` rank.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from star_jax.checkpoints.companions import Companions, copy_companions, found, together
from star_jax.checkpoints.files import INDEX_FILE, read_object, weight_files
from star_jax.checkpoints.peft import Pair
from star_jax.checkpoints.tensors import TensorReader, text_name
from star_jax.errors import ConfigError

WEIGHTS_PATTERN = "model{suffix}.safetensors"
"""Names of the files of weights, as Transformers looks for them."""

OTHERS = ("config.json", "generation_config.json", "LICENSE*", "NOTICE*")
"""What is copied from the base beside its weights and the tokenizer: configuration and licence."""

FLOATS = ("float64", "float32", "bfloat16", "float16")
"""Types of weights to which something can be added; narrower ones need scales to be read."""


class MergePlan(NamedTuple):
    """A merged checkpoint before it is written.

    Attributes:
      base: folder of the base model.
      pairs: tensor of the base -> factors whose product is added to it.
      files: file of weights -> names of its tensors.
      total_bytes: size of all tensors.
      companions: files that are copied beside the weights.
      tokenizer: whose tokenizer and chat template are among them, for people.
    """

    base: Path
    pairs: dict[str, Pair]
    files: dict[str, list[str]]
    total_bytes: int
    companions: Companions
    tokenizer: str


def plan_merge(base: Path, pairs: Mapping[str, Pair], max_shard_bytes: int, adapter: Path | None = None) -> MergePlan:
    """Matches an adapter with a base model and divides the result into files.

    Args:
      base: folder of a Hugging Face model of any family.
      pairs: module path -> factors, from `peft_format.read_peft`.
      max_shard_bytes: largest size of a file; one that holds a single tensor may be larger.
      adapter: folder of the adapter, whose tokenizer and chat template go before the base's; None for one without.

    Raises:
      ConfigError: the base cannot be read or is quantised, or a module of the adapter has no weight there, one of
        another shape, or one that the embedding shares.
    """
    from huggingface_hub import parse_local_safetensors_file_metadata, split_state_dict_into_shards_factory

    if not (base / "config.json").is_file():
        raise ConfigError(f"{base} has no config.json; a model is a Hugging Face model folder")
    raw = read_object(base / "config.json")
    if raw.get("quantization_config"):
        raise ConfigError(
            f"{base / 'config.json'} has a quantization_config, and nothing can be added to quantised weights; "
            "merge into the model that they were made from"
        )
    with TensorReader(base) as tensors:
        shapes = {name: tensors.shape(name) for name in tensors.names}
        if raw.get("text_config"):
            pairs = _as_stored(shapes, pairs)
        for path, pair in pairs.items():
            _check(base, shapes, path, pair)
        if "lm_head" in pairs:
            _refuse_tied_head(base, tensors, shapes, bool(raw.get("tie_word_embeddings")))
    sizes = {}
    for file in weight_files(base):
        for name, info in parse_local_safetensors_file_metadata(file).tensors.items():
            start, end = info.data_offsets
            sizes[name] = end - start
    split = split_state_dict_into_shards_factory(
        {name: sizes[name] for name in shapes},
        get_storage_size=int,
        filename_pattern=WEIGHTS_PATTERN,
        max_shard_size=max_shard_bytes,
    )
    by_tensor = {f"{path}.weight": pair for path, pair in pairs.items()}
    tokenizer, whose = together(base, base if adapter is None else adapter)
    files, size = split.filename_to_tensors, split.metadata["total_size"]
    return MergePlan(base, by_tensor, files, size, found(base, OTHERS) | tokenizer, whose)


def write_merged(plan: MergePlan, folder: Path) -> None:
    """Writes a merged checkpoint into a folder that exists; memory holds one file of weights at a time.

    Raises:
      ConfigError: a weight is not stored as floats, or is not finite once the product is added.
    """
    from safetensors.numpy import save_file

    copy_companions(plan.companions, folder)
    with TensorReader(plan.base) as tensors:
        for file, names in plan.files.items():
            shard = {name: _tensor(plan, tensors, name) for name in names}
            # Transformers reads a file only when it says which library laid the tensors out.
            save_file(shard, folder / file, {"format": "pt"})
            # safetensors makes files that nobody but their owner may read.
            shutil.copymode(folder / "config.json", folder / file)
            del shard  # or two files' tensors would be held while the next one is filled
    if len(plan.files) > 1:
        index = {
            "metadata": {"total_size": plan.total_bytes},
            "weight_map": {name: file for file, names in plan.files.items() for name in names},
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def merged(weight: np.ndarray, pair: Pair) -> np.ndarray:
    """`weight` `O×I` + scale · B A, computed in float32 and rounded once to the type of `weight`."""
    total = np.asarray(pair.b, np.float32) @ np.asarray(pair.a, np.float32)
    total *= np.float32(pair.scale)
    total += weight.astype(np.float32)
    with np.errstate(over="ignore"):  # what is too large for float16 is found by the caller
        return total.astype(weight.dtype)


def _tensor(plan: MergePlan, tensors: TensorReader, name: str) -> np.ndarray:
    stored = tensors.read(name)
    if name not in plan.pairs:
        return stored
    if stored.dtype.name not in FLOATS:
        raise ConfigError(f"{plan.base}: the tensor {name} is stored as {stored.dtype.name}; merge into one of floats")
    result = merged(stored, plan.pairs[name])
    if not np.isfinite(result).all():
        raise ConfigError(f"{plan.base}: the tensor {name} is not finite as {stored.dtype.name} once it is merged")
    return result


def _as_stored(shapes: Mapping[str, tuple[int, ...]], pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """The adapter's modules under the names that the files of a model with images have for them."""
    stored = {text_name(name): name for name in shapes}
    found = {path: stored.get(text_name(f"{path}.weight"), f"{path}.weight") for path in pairs}
    return {found[path].removesuffix(".weight"): pair for path, pair in pairs.items()}


def _check(base: Path, shapes: Mapping[str, tuple[int, ...]], path: str, pair: Pair) -> None:
    """Refuses a module that the base has no weight for, or one of another shape."""
    name = f"{path}.weight"
    if name not in shapes:
        known = [other for other, shape in shapes.items() if other.endswith(".weight") and len(shape) == 2]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0)
        raise ConfigError(
            f"the adapter has factors for {path}, and {base} has no weight of that module; it has "
            + ", ".join(other.removesuffix(".weight") for other in close)
        )
    shape = (pair.b.shape[0], pair.a.shape[1])
    if shapes[name] != shape:
        raise ConfigError(
            f"the adapter's factors for {path} make a weight of shape {shape}; in {base} it has {shapes[name]}"
        )


def _refuse_tied_head(base: Path, tensors: TensorReader, shapes: Mapping[str, tuple[int, ...]], tied: bool) -> None:
    """A head that the embedding shares cannot be changed alone, even where old files hold it a second time."""
    head = "lm_head.weight"
    twins = [name for name, shape in shapes.items() if "embed" in name and shape == shapes[head]]
    # Some families tie the two without saying so in config.json.
    if tied or any(np.array_equal(tensors.read(name), tensors.read(head)) for name in twins):
        raise ConfigError(f"the adapter has factors for lm_head, which is one with the embedding in {base}")
