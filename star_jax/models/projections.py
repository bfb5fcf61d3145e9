"""Names of a decoder's modules: ours, those of Hugging Face folders, and the patterns that choose among them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from star_jax.errors import ConfigError

PROJECTION_PATHS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "qkv_proj": "self_attn.qkv_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "gate_up_proj": "mlp.gate_up_proj",
    "down_proj": "mlp.down_proj",
}
"""Projection -> where it lives in a layer of a checkpoint. A block has either the fused ones or their parts."""

ALL_LINEAR = "all-linear"
"""Every projection of every layer, as PEFT calls them."""


def module_path(layer: int, name: str, root: str = "model") -> str:
    """Path of a projection in a Hugging Face model: `model.layers.3.self_attn.q_proj`, where its decoder is `model`."""
    return f"{root}.layers.{layer}.{PROJECTION_PATHS[name]}"


def choose_modules(depth: int, names: Sequence[str], targets: Sequence[str]) -> dict[str, tuple[bool, ...]]:
    """The projections that get an adapter.

    Args:
      depth: layers, L.
      names: projections of a layer.
      targets: `all-linear`; names or ends of paths, such as `q_proj` or `layers.3.mlp.up_proj`; or regular
        expressions for whole paths, such as `.*[.](0|1)[.]self_attn[.].*`.

    Returns:
      Projection -> for each of the L layers, whether it is chosen; those chosen nowhere are left out.

    Raises:
      ConfigError: a target is no regular expression, or matches nothing; the names there are are listed.
    """
    paths = {name: [module_path(layer, name) for layer in range(depth)] for name in names}
    for target in targets:
        try:
            found = any(matches(path, target) for column in paths.values() for path in column)
        except re.error as error:
            raise ConfigError(f"lora.targets has {target!r}, which is no regular expression: {error}") from None
        if not found:
            raise ConfigError(
                f"lora.targets has {target!r}, which matches no module of this model; it has {', '.join(names)}, "
                f"with paths such as {module_path(0, names[0])}"
            )
    chosen = {
        name: tuple(any(matches(path, target) for target in targets) for path in column)
        for name, column in paths.items()
    }
    return {name: layers for name, layers in chosen.items() if any(layers)}


def matches(path: str, target: str) -> bool:
    """Whether a module's path is meant by one target, as `choose_modules` reads them.

    Raises:
      re.error: the target is no regular expression, and would have to be one.
    """
    if target == ALL_LINEAR or path.endswith(f".{target}") or path == target:
        return True
    return re.fullmatch(target, path) is not None
