"""What `import star_jax` promises: names, their examples, and that it changes nothing."""

import doctest
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from functools import cache

import pytest

import star_jax as sj

CONSTANTS = {"SKIP", "__version__"}
"""Public names that are plain values: they have no docstring of their own."""

NAMES = sorted(set(sj.__all__) - CONSTANTS)


def in_fresh_process(script):
    """What the script prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_there_are_few_names_and_each_resolves():
    assert 20 <= len(sj.__all__) <= 30
    assert len(set(sj.__all__)) == len(sj.__all__)
    assert set(sj._PLACES) == set(sj.__all__) - {"__version__"}
    for name in sj.__all__:
        assert getattr(sj, name) is getattr(sj, name)
        assert not inspect.ismodule(getattr(sj, name))
    assert all(isinstance(getattr(sj, name), str) for name in CONSTANTS)
    assert set(sj.__all__) <= set(dir(sj))


def test_a_star_import_brings_all_names():
    names = {}
    exec("from star_jax import *", names)
    assert set(sj.__all__) <= set(names)


@cache
def loaded_once():
    """The shipped model, which most examples load."""
    return sj.load_model("embedded:skills")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("registries")
def test_the_example_of_a_name_is_true(name, monkeypatch):
    value = getattr(sj, name)
    assert inspect.getdoc(value)
    module = sys.modules[value.__module__]
    tests = doctest.DocTestFinder(exclude_empty=True).find(value, name, module, globs=vars(module) | {"sj": sj})
    examples = [test for test in tests if test.examples]
    assert name in [test.name for test in examples]
    if name != "load_model":
        model = loaded_once()
        monkeypatch.setattr(sj, "load_model", lambda path: model)
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    for test in examples:
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries >= len(examples)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'star_jax' has no attribute 'finetune'"):
        sj.finetune  # noqa: B018


def test_no_name_is_that_of_a_module():
    """The module would take the name's place as soon as somebody imports it."""
    modules = {module.name for module in pkgutil.iter_modules(sj.__path__)}
    assert modules >= {"score", "run", "export", "testing", "api"}
    assert not modules & set(sj.__all__)


IMPORT = """
import json, logging, os, sys, warnings
before = dict(os.environ), list(logging.root.handlers), logging.root.level, list(warnings.filters)
import star_jax
after = dict(os.environ), list(logging.root.handlers), logging.root.level, list(warnings.filters)
print(json.dumps({
    "same": before == after,
    "loggers": [name for name in logging.root.manager.loggerDict if "star_jax" in name],
    "heavy": sorted({"jax", "jaxlib", "numpy", "flax", "transformers", "optax"} & set(sys.modules)),
    "own": sorted(name for name in sys.modules if name.startswith("star_jax")),
    "listed": sorted(dir(star_jax)),
}))
"""


def test_importing_the_package_loads_nothing_and_configures_nothing():
    found = in_fresh_process(IMPORT)
    assert found["same"]
    assert found["heavy"] == []
    assert found["own"] == ["star_jax"]
    assert found["loggers"] == []
    assert set(sj.__all__) <= set(found["listed"])


EVERYTHING = """
import json, logging, os, pkgutil, importlib, types
import jax
def settings():
    return dict(jax.config.values), list(logging.root.handlers), logging.getLogger("star_jax").handlers
before = settings()
import star_jax
names = {name: getattr(star_jax, name) for name in star_jax.__all__}
same = [str(a) == str(b) for a, b in zip(before, settings())]
modules = [one.name for one in pkgutil.walk_packages(star_jax.__path__, "star_jax.")]
modules = [name for name in modules if not name.endswith("__main__")]
for name in modules:
    importlib.import_module(name)
print(json.dumps({
    "same": same,
    "modules": modules,
    "replaced": [name for name, value in names.items() if getattr(star_jax, name) is not value],
    "masked": [name for name, value in names.items() if isinstance(value, types.ModuleType)],
}))
"""


def test_importing_every_module_replaces_no_name_and_configures_nothing():
    found = in_fresh_process(EVERYTHING)
    assert {"star_jax.score", "star_jax.run", "star_jax.export", "star_jax.testing"} <= set(found["modules"])
    assert len(found["modules"]) > 80
    assert found["replaced"] == []
    assert found["masked"] == []
    assert found["same"] == [True, True, True]
