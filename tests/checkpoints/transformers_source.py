"""The fields of a configuration that the installed Transformers reads, out of its source.

Read are: attributes and keys of whatever is called a config, names that `getattr` and the like ask it for, keys that a
configuration class takes out of what it is made from, and, in a function that asks a config for names it computes,
every text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

ROOT = Path(transformers.__file__).parent

SHARED = [
    *(f"{name}_utils" for name in ("configuration", "modeling", "masking", "modeling_rope", "cache")),
    *("modeling_layers", "modeling_flash_attention_utils", "core_model_loading", "conversion_mapping"),
    *("fusion_mapping", "monkey_patching", "models/auto/auto_factory", "models/auto/configuration_auto"),
    *(f"integrations/{name}_attention" for name in ("sdpa", "flash", "flex")),
    *("integrations/eager_paged", "integrations/sdpa_paged", "integrations/moe", "integrations/accelerate"),
    *(f"integrations/heterogeneity/{file.stem}" for file in sorted(ROOT.glob("integrations/heterogeneity/*.py"))),
]
"""Loading, modelling, masking, cache and rotary code that all families go through."""

CALLERS = ("from_pretrained", "from_dict", "get_config_dict", "_get_config_dict", "save_pretrained")
"""Methods whose keyword arguments come from a caller, not from config.json."""

ASKING = (
    "getattr",
    "hasattr",
    "_getattr_without_heterogeneous_validation",
    "_hasattr_without_heterogeneous_validation",
)
TAKING = ("get", "pop", "setdefault")

_NO_FIELDS = """
add append auto pop popleft register skip optional replace setter config config_class init_kwargs get_config_class
PreTrainedConfig from_model_config create_compatible_mapping sanitize_kernel_mapping _get_default_generation_params
_config _configuration_file _extra_content _mapping _modules _is_quantized _layers _attention_heads _token_id meta eager
allow_all_kernels compile_config device_map device_mesh disable_mmap disk_offload_folder dtype_plan hf_quantizer
ignore_mismatched_sizes offload_buffers sharded_metadata weight_mapping weights_only deepgemm_megamoe
_from_auto _from_pipeline base_model_name_or_path distributed_config fusion_config return_unused_kwargs
factor features_only in_channels num_channels out_indices patch_size temporal_patch_size pretrained_model_name_or_path
"""
NO_FIELDS = frozenset([*dir(dict), *_NO_FIELDS.split()])
"""What else the reading below finds: methods, and settings of a call of `from_pretrained`, which it keeps in an object
that is called a config too; and in the last line, fields that are read for models of images and sound."""


def shared_files() -> list[Path]:
    return [ROOT / f"{name}.py" for name in SHARED if (ROOT / f"{name}.py").is_file()]


def family_files(kind: str) -> list[Path]:
    folder = ROOT / "models" / CONFIG_MAPPING[kind].__module__.split(".")[2]
    return [*folder.glob("configuration_*.py"), *folder.glob("modeling_*.py")]


def fields_read(files: Iterable[Path], classes: Iterable[str] = ()) -> set[str]:
    """Names that the files read; of their classes, those that are named or begin so, where any are."""
    found: set[str] = set()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        parts = tree.body
        if classes:
            parts = [
                part for part in parts if not isinstance(part, ast.ClassDef) or part.name.startswith(tuple(classes))
            ]
        found.update(_reads(ast.Module(parts, [])))
    return {name for name in found - NO_FIELDS if name.isidentifier() and not hasattr(PreTrainedConfig, name)}


def _reads(tree: ast.Module) -> Iterator[str]:
    aliases = _aliases(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "Config" in node.name:
            yield from _of_class(node)
        if isinstance(node, ast.FunctionDef) and any(_asks(inner, aliases, computed=True) for inner in ast.walk(node)):
            yield from (one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and _is_text(one.value))
        if isinstance(node, ast.Attribute) and _is_config(node.value, aliases):
            yield node.attr
        if isinstance(node, ast.Subscript) and _is_config(node.value, aliases):
            yield from _texts([node.slice])
        if isinstance(node, ast.Compare) and any(_is_config(right, aliases) for right in node.comparators):
            yield from _texts([node.left])
        if isinstance(node, ast.Call):
            asked = node.args[1:2] if _asks(node, aliases) and isinstance(node.func, ast.Name) else node.args[:1]
            if _asks(node, aliases) or _takes(node, aliases):
                yield from _texts(asked)


def _walked(tree: ast.AST) -> Iterator[ast.AST]:
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.FunctionDef) and child.name in CALLERS):
            yield from _walked(child)


def _of_class(node: ast.ClassDef) -> Iterator[str]:
    """Attributes of a configuration class's own, and what it takes out of its arguments."""
    for inner in _walked(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name) and inner.value.id == "self":
            yield inner.attr
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr in TAKING:
            yield from _texts(inner.args[:1] if ast.unparse(inner.func.value) == "kwargs" else [])


def _asks(node: ast.AST, aliases: set[str], computed: bool = False) -> bool:
    """Whether a call asks a config for a name; or for one that is not written there, where it is `computed`."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name) and node.func.id in ASKING and len(node.args) > 1:
        config, name = node.args[:2]
    elif isinstance(node.func, ast.Attribute) and node.func.attr in ASKING and node.args:
        config, name = node.func.value, node.args[0]
    else:
        return False
    return _is_config(config, aliases) and computed != isinstance(name, ast.Constant)


def _takes(node: ast.Call, aliases: set[str]) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr in TAKING and _is_config(node.func.value, aliases)


def _aliases(tree: ast.Module) -> set[str]:
    """Names that a config is assigned to."""
    found: set[str] = set()
    before = -1
    while len(found) > before:
        before = len(found)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and _is_config(node.value, found):
                found.update(target.id for target in node.targets if isinstance(target, ast.Name))
            if isinstance(node, ast.NamedExpr) and _is_config(node.value, found):
                found.add(node.target.id)
    return found


def _is_config(node: ast.expr, aliases: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return "config" in node.id.lower() or node.id in aliases
    if isinstance(node, ast.Attribute):
        return "config" in node.attr.lower()
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get_text_config"


def _texts(nodes: Iterable[ast.expr]) -> Iterator[str]:
    yield from (node.value for node in nodes if isinstance(node, ast.Constant) and _is_text(node.value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)
