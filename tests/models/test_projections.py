"""Which projections a target means, one path at a time."""

import re

import numpy as np
import pytest

from star_jax.errors import ConfigError
from star_jax.models.projections import ALL_LINEAR, PROJECTION_PATHS, choose_modules, matches, module_path

PLAIN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def test_paths_are_those_of_hugging_face() -> None:
    assert module_path(3, "q_proj") == "model.layers.3.self_attn.q_proj"
    assert module_path(11, "gate_up_proj") == "model.layers.11.mlp.gate_up_proj"
    assert set(PROJECTION_PATHS) == {*PLAIN, *FUSED}


@pytest.mark.parametrize(
    ("target", "means"),
    [
        (ALL_LINEAR, True),
        ("q_proj", True),
        ("self_attn.q_proj", True),
        ("layers.1.self_attn.q_proj", True),
        ("model.layers.1.self_attn.q_proj", True),
        (r".*[.](0|1)[.]self_attn[.].*", True),
        (r"model\.layers\.\d+\.self_attn\.[qv]_proj", True),
        # A name is a whole part of a path, and an expression means the whole path.
        ("proj", False),
        ("_proj", False),
        ("k_proj", False),
        ("layers.2.self_attn.q_proj", False),
        ("1.self_attn", False),
        (r"self_attn[.][qv]_proj", False),
        (r"model[.]layers[.]1", False),
        # The dot of an end of a path is a dot.
        ("self_attn?q_proj", False),
    ],
)
def test_a_target_means_a_path_or_not(target: str, means: bool) -> None:
    assert matches("model.layers.1.self_attn.q_proj", target) is means


@pytest.mark.parametrize("names", [PLAIN, FUSED])
def test_all_linear_is_everything(rng: np.random.Generator, names: tuple[str, ...]) -> None:
    depth = int(rng.integers(1, 6))
    assert choose_modules(depth, names, [ALL_LINEAR]) == dict.fromkeys(names, (True,) * depth)


def test_targets_add_up() -> None:
    chosen = choose_modules(3, PLAIN, ["v_proj", r".*[.](0|2)[.]mlp[.](up|down)_proj", "layers.1.mlp.up_proj"])
    assert chosen == {"v_proj": (True,) * 3, "up_proj": (True,) * 3, "down_proj": (True, False, True)}


def test_layers_of_two_digits_are_no_prefixes() -> None:
    assert choose_modules(12, PLAIN, ["layers.1.mlp.up_proj"]) == {"up_proj": tuple(i == 1 for i in range(12))}


@pytest.mark.parametrize(
    ("names", "target", "sentence"),
    [
        (PLAIN, "query", "'query', which matches no module of this model; it has q_proj, k_proj, v_proj, o_proj"),
        (PLAIN, "layers.3.mlp.up_proj", "'layers.3.mlp.up_proj', which matches no module"),
        (FUSED, "q_proj", "'q_proj', which matches no module .* has qkv_proj, o_proj, .* model.layers.0.self_attn.qkv"),
        (PLAIN, "q_(", "'q_(', which is no regular expression: "),
    ],
)
def test_targets_without_a_meaning_are_named(names: tuple[str, ...], target: str, sentence: str) -> None:
    pattern = "lora.targets has " + re.escape(sentence).replace(r"\.\*", ".*")
    with pytest.raises(ConfigError, match=pattern):
        choose_modules(3, names, ["o_proj", target])
