"""PEFT adapter folders: adapter_config.json and adapter_model.safetensors, in and out.

PEFT stores A as r×in and B as out×r, one pair a module, under `base_model.model.<module path>`. Here a projection's
pairs are stacked over the layers; layers that differ in rank are filled up with zeros, and layers without a pair are
all zeros, which changes nothing.

Shapes: `L` layers, `r` the largest rank of a projection.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from star_jax.checkpoints.files import ADAPTER_FILE, on_one_line, read_object
from star_jax.checkpoints.tensor_shapes import projection_shapes
from star_jax.checkpoints.tensors import text_name
from star_jax.documents import NUMBER, SWITCH, TEXT, Kind, UnreadableError, check_fields, either, list_of, shown
from star_jax.errors import ConfigError
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter
from star_jax.models.projections import matches, module_path

CONFIG_FILE, WEIGHTS_FILE = ADAPTER_FILE, "adapter_model.safetensors"

_PREFIX = "base_model.model."

_READ = """
peft_type bias r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules
layers_to_transform layers_pattern init_lora_weights lora_dropout base_model_name_or_path
"""

_INERT = """
task_type auto_mapping peft_version revision inference_mode runtime_config megatron_config megatron_core
loftq_config eva_config corda_config lora_ga_config qalora_group_size ensure_weight_tying
"""
"""Fields that say how factors were made or are to be run, not what they mean."""

LARGEST = 2**31
"""Ranks and alphas are smaller than this."""

_FIELDS = {
    "lora_dropout": Kind("a number from 0 to 1", lambda value: NUMBER.holds(value) and 0 <= value <= 1).or_null(),
    "base_model_name_or_path": TEXT.or_null(),
    "use_rslora": SWITCH.or_null(),
    **dict.fromkeys(("target_modules", "exclude_modules"), either(TEXT, list_of(TEXT)).or_null()),
}
"""Fields that are read, and what they must be; the others are checked where they are read."""

_CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` under which the factors belong to a base model that was changed as well."""


class Pair(NamedTuple):
    """The factors of one module: A `r×in`, B `out×r`, and the scale of their product."""

    a: np.ndarray
    b: np.ndarray
    scale: float


class PeftAdapter(NamedTuple):
    """A PEFT folder as it is: its configuration, and module path -> factors."""

    raw: dict[str, Any]
    pairs: dict[str, Pair]


def read_peft(folder: Path) -> PeftAdapter:
    """Reads a PEFT LoRA folder of any model.

    Raises:
      ConfigError: a file is missing or broken, or the adapter is of a kind that is not supported; the field is named.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} has no {name}; an adapter is a PEFT folder with that file")
    raw = read_object(folder / CONFIG_FILE)
    _refuse_others(folder / CONFIG_FILE, raw)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    pairs = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        stem = key.removesuffix(".lora_A.weight")
        path = stem.removeprefix(_PREFIX)
        a, b = tensors.pop(key), tensors.pop(f"{stem}.lora_B.weight", None)
        rank = _by_pattern(raw.get("rank_pattern"), path, raw["r"])
        if b is None or a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
            found = "missing" if b is None else f"of shape {b.shape}, beside A of shape {a.shape}"
            raise ConfigError(
                f"{folder / WEIGHTS_FILE}: {stem}.lora_B.weight is {found}; {CONFIG_FILE} says rank {rank}"
            )
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ConfigError(f"{folder / WEIGHTS_FILE}: the factors of {path} hold values that are not finite")
        alpha = _by_pattern(raw.get("alpha_pattern"), path, raw["lora_alpha"])
        pairs[path] = Pair(a, b, alpha / (rank**0.5 if raw.get("use_rslora") else rank))
    if tensors or not pairs:
        left = ", ".join(sorted(tensors)[:3]) or "none"
        raise ConfigError(f"{folder / WEIGHTS_FILE}: tensors that are no LoRA factors: {left}")
    return PeftAdapter(raw, pairs)


def load_adapter(folder: Path, config: TransformerConfig) -> tuple[Adapter, dict[str, Any]]:
    """Reads a PEFT LoRA folder for a model.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      config: of the base model, for the shapes.

    Returns:
      The adapter, float32, and PEFT's configuration as read.

    Raises:
      ConfigError: as `read_peft`, or a module is not one of the model's, has other widths, or lacks its factors.
    """
    raw, pairs = read_peft(folder)
    if config.module_root != "model":
        pairs = {text_name(path): pair for path, pair in pairs.items()}
    shapes, depth = projection_shapes(config), config.num_hidden_layers
    weights, scale = {}, {}
    for name, (fan_in, features) in shapes.items():
        found = [pairs.pop(module_path(layer, name), None) for layer in range(depth)]
        present = [pair for pair in found if pair is not None]
        if not present:
            continue
        for layer, pair in enumerate(found):
            if pair is not None and (pair.a.shape[1], pair.b.shape[0]) != (fan_in, features):
                raise ConfigError(
                    f"{folder / WEIGHTS_FILE}: the factors of {module_path(layer, name)} are for a projection from "
                    f"{pair.a.shape[1]} to {pair.b.shape[0]}; the model's is from {fan_in} to {features}"
                )
        rank = max(pair.a.shape[0] for pair in present)
        a, b = np.zeros((depth, fan_in, rank), np.float32), np.zeros((depth, rank, features), np.float32)
        for layer, pair in enumerate(found):
            if pair is not None:
                a[layer, :, : pair.a.shape[0]], b[layer, : pair.a.shape[0]] = pair.a.T, pair.b.T
        weights[name] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
        scale[name] = {"scale": jnp.asarray([0.0 if pair is None else pair.scale for pair in found], jnp.float32)}
    if pairs:
        raise ConfigError(
            f"{folder / WEIGHTS_FILE}: factors for {', '.join(sorted(pairs)[:3])}, and the model has no such "
            f"projection; it has {', '.join(shapes)}, with paths such as {module_path(0, next(iter(shapes)))}"
        )
    adapter = Adapter({"layers": weights}, {"layers": scale})
    _refuse_gaps(folder, raw, adapter, config)
    return adapter, raw


def save_adapter(
    adapter: Adapter, folder: Path, *, base_model: str, dropout: float, rslora: bool = False, root: str = "model"
) -> None:
    """Writes an adapter as a PEFT folder.

    The rank and alpha that most modules have become `r` and `lora_alpha`; others go into the patterns.

    Args:
      adapter: to write.
      folder: made if it is not there.
      base_model: what `base_model_name_or_path` says.
      dropout: what `lora_dropout` says.
      rslora: whether the scale is to be written as alpha / √r, with `use_rslora`.
      root: path of the decoder among the model's modules (`TransformerConfig.module_root`).
    """
    from safetensors.numpy import save_file

    pairs = _pairs(adapter, root)
    ranks = {path: pair.a.shape[0] for path, pair in pairs.items()}
    alphas = {path: _alpha(pair, rslora) for path, pair in pairs.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    layers = adapter.scale["layers"]
    # Where there is a model of images as well, names by themselves would be found in it too.
    everywhere = root == "model" and len(pairs) == sum(len(entry["scale"]) for entry in layers.values())
    tensors = {}
    for path, pair in pairs.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = np.ascontiguousarray(pair.a)
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = np.ascontiguousarray(pair.b)
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "lora_dropout": dropout,
        "target_modules": list(layers) if everywhere else sorted(pairs),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    # safetensors makes files that nobody but their owner may read.
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)


def _pairs(adapter: Adapter, root: str) -> dict[str, Pair]:
    """Module path -> factors without their zero padding; modules whose scale is 0 have none."""
    pairs = {}
    for name, factors in adapter.weights["layers"].items():
        a, b = np.asarray(factors["a"]), np.asarray(factors["b"])
        for layer, scale in enumerate(np.asarray(adapter.scale["layers"][name]["scale"]).tolist()):
            if scale == 0:
                continue
            used = np.flatnonzero(np.any(a[layer] != 0, axis=0) | np.any(b[layer] != 0, axis=1))
            rank = int(used[-1]) + 1 if len(used) else a.shape[2]
            pairs[module_path(layer, name, root)] = Pair(a[layer, :, :rank].T, b[layer, :rank].T, scale)
    return pairs


def _alpha(pair: Pair, rslora: bool) -> float:
    # The scale is float32: what it was made from is the number with few digits next to it.
    rank = pair.a.shape[0]
    return float(f"{pair.scale * (rank**0.5 if rslora else rank):.6g}")


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches a path or its end, as PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def _refuse_others(file: Path, raw: Mapping[str, Any]) -> None:
    known = {*_READ.split(), *_INERT.split()}
    refused = [name for name, value in raw.items() if name not in known and value not in (None, False, [], {})]
    if raw.get("peft_type") != "LORA":
        refused.append(f"peft_type {raw.get('peft_type')}")
    if raw.get("bias", "none") != "none":
        refused.append("bias")
    if str(raw.get("init_lora_weights")).lower().startswith(_CHANGING_THE_BASE):
        refused.append(f"init_lora_weights {raw['init_lora_weights']}")
    if refused:
        raise ConfigError(f"{file}: {', '.join(refused)} is not supported; LoRA and rsLoRA with patterns are")
    try:
        check_fields(raw, _FIELDS)
    except UnreadableError as error:
        raise ConfigError(f"{file} {error.problem}") from None
    for name in ("r", "lora_alpha"):
        if not _is_positive(raw.get(name)):
            found = f"is {shown(raw[name])}" if name in raw else "is missing"
            raise ConfigError(f"{file}: the field {name!r} {found}; a positive number is expected")
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = raw.get(name) or {}
        if not isinstance(patterns, dict) or not all(map(_is_positive, patterns.values())):
            raise ConfigError(
                f"{file}: {name} is {shown(patterns)}; an object of module patterns and numbers is expected"
            )
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{file}: {name} has {pattern!r}, no regular expression: {error}") from None


def _is_positive(value: Any) -> bool:
    return NUMBER.holds(value) and 0 < value < LARGEST


def _refuse_gaps(folder: Path, raw: Mapping[str, Any], adapter: Adapter, config: TransformerConfig) -> None:
    """A module that `target_modules` names must have its factors; the fields that take some away again are rare."""
    targets = raw.get("target_modules")
    if not targets or any(raw.get(name) for name in ("exclude_modules", "layers_to_transform")):
        return
    targets = [targets] if isinstance(targets, str) else targets
    for name in projection_shapes(config):
        scales = np.asarray(adapter.scale["layers"].get(name, {"scale": np.zeros(config.num_hidden_layers)})["scale"])
        for layer in np.flatnonzero(scales == 0).tolist():
            path = module_path(layer, name, config.module_root)
            try:
                named = any(matches(path, target) for target in targets)
            except re.error as error:
                raise ConfigError(f"{folder / CONFIG_FILE}: target_modules is no regular expression: {error}") from None
            if named:
                raise ConfigError(
                    f"{folder / WEIGHTS_FILE}: the factors of {path} are missing, and {CONFIG_FILE} has it among "
                    "target_modules"
                )


def _read_tensors(file: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: tensor.astype(np.float32) for name, tensor in load_file(file).items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {on_one_line(error)}; fetch the whole file again") from error
