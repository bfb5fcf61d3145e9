"""Data flows down the package; imports only go up. The one place where the order of the layers is written."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "star_jax"

LAYERS = (
    "errors",
    "documents",
    "registry",
    "config",
    "config_file",
    "data",
    "ops",
    "parallel",
    "models",
    "checkpoints",
    "training",
    "inference",
    "acquisition",
    "runs.files",
    "annotators",
    "active",
    "evaluation",
    "tracking",
    "runs",
    "benchmarks",
    "report",
    "environment",
    "experiment",
    "planning",
    "api",
    "testing",
    "cli",
    "commands",
)
"""A module may import from its own layer and from those before it."""

COMMANDS = ("run", "score", "export")
"""What a person starts with `python -m`; so is every `__main__` of a folder."""


def layer_of(module):
    """Position in `LAYERS` of a dotted module name, -1 for the bare package."""
    parts = module.split(".")[1:]
    if not parts:
        return -1
    name = "commands" if parts[0] in COMMANDS or parts[-1] == "__main__" else parts[0]
    if ".".join(parts[:2]) in LAYERS:
        name = ".".join(parts[:2])
    assert name in LAYERS, f"{module} belongs to no layer; put {name} in its place in LAYERS"
    return LAYERS.index(name)


def is_for_type_checkers(node):
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported_modules(source, module, is_package):
    """Every module of the package that a source text imports, wherever in the text it does.

    The package itself tells type checkers what it loads when it is first used; it imports none of it.
    """
    tree = ast.parse(source)
    if module == "star_jax":
        tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and is_for_type_checkers(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            # `from star_jax import config` names a module, `from star_jax.config import X` does not.
            names = [f"{origin}.{alias.name}" for alias in node.names] if origin == "star_jax" else [origin]
        else:
            continue
        for name in names:
            if name == "star_jax" or (name.startswith("star_jax.") and not name.startswith("star_jax.__")):
                yield name


def violations(source, module, is_package=False):
    return [name for name in imported_modules(source, module, is_package) if layer_of(name) > layer_of(module)]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_up(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    wrong = violations(path.read_text(encoding="utf-8"), module, is_package)
    assert not wrong, f"{module} imports {', '.join(wrong)}, which comes after it"


@pytest.mark.parametrize(
    ("source", "module", "is_package", "expected"),
    [
        ("import star_jax.run", "star_jax.config", False, ["star_jax.run"]),
        ("from star_jax import active", "star_jax.models.lora", False, ["star_jax.active"]),
        ("from star_jax.active.loop import step", "star_jax.models.lora", False, ["star_jax.active.loop"]),
        ("def f():\n    from ..report import page", "star_jax.models.lora", False, ["star_jax.report"]),
        ("from ..report import page", "star_jax.models", True, ["star_jax.report"]),
        ("from . import report", "star_jax", True, ["star_jax.report"]),
        ("if TYPE_CHECKING:\n    from star_jax.report import page", "star_jax", True, []),
        ("if TYPE_CHECKING:\n    pass\nfrom star_jax import report", "star_jax", True, ["star_jax.report"]),
        ("if TYPE_CHECKING:\n    from star_jax import run", "star_jax.models", True, ["star_jax.run"]),
        ("from star_jax.api.loop import ActiveLoop", "star_jax.experiment.runner", False, ["star_jax.api.loop"]),
        ("from .lora import Lora", "star_jax.models.transformer", False, []),
        ("from .lora import Lora", "star_jax.models", True, []),
        ("from star_jax import __version__, config", "star_jax.models.lora", False, []),
        ("import jax, star_jax", "star_jax.config", False, []),
        ("from star_jax.cli.flags import guarded_main", "star_jax.report.__main__", False, []),
        ("from star_jax.cli.flags import guarded_main", "star_jax.report.page", False, ["star_jax.cli.flags"]),
    ],
)
def test_the_check_sees_every_form_of_import(source, module, is_package, expected):
    assert violations(source, module, is_package) == expected


def test_a_module_without_a_layer_is_named():
    with pytest.raises(AssertionError, match=r"star_jax\.utils belongs to no layer"):
        layer_of("star_jax.utils")
