"""Names of strategies, tasks, annotators and trackers: the package's, your own, and those of what is installed."""

import re
import sys
from importlib import import_module, metadata

import pytest

from star_jax import registry
from star_jax.errors import ConfigError
from star_jax.registry import ANNOTATORS, STRATEGIES, TASKS, TRACKERS, Registry, load_plugins


@pytest.fixture
def colours():
    return Registry("colour", "tests.colours", {"pi": "math:pi", "tau": "math:tau"})


class Distribution(metadata.Distribution):
    """An installed package of that name."""

    def __init__(self, name):
        self._name = name

    @property
    def name(self):
        return self._name

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        return path


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Entry points of the group `tests.colours`, by name -> `module:attribute`, of the package `paint`."""
    points = {}

    def entry_points(*, group):
        assert group == "tests.colours"
        return [
            metadata.EntryPoint(name, value, group)._for(Distribution("paint") if name != "orphan" else None)
            for name, value in points.items()
        ]

    monkeypatch.setattr(registry.metadata, "entry_points", entry_points)
    monkeypatch.syspath_prepend(tmp_path)
    return points


# Names and values


def test_what_is_registered_is_found_and_listed_behind_the_packages_own(colours):
    colours.register("red", "#f00")
    colours.register("blue", None)
    assert colours.names() == ["pi", "tau", "blue", "red"]
    assert (colours.get("red"), colours.get("blue")) == ("#f00", None)
    assert "red" in colours
    assert "green" not in colours


def test_what_the_package_brings_is_imported_when_it_is_asked_for():
    lazy = Registry("colour", "tests.colours", {"pi": "math:pi", "lost": "no.such.module:x"})
    assert lazy.names() == ["pi", "lost"]
    assert "lost" in lazy
    assert lazy.get("pi") == import_module("math").pi
    with pytest.raises(ModuleNotFoundError, match="no"):
        lazy.get("lost")


def test_every_name_of_the_package_has_its_value():
    for each in (STRATEGIES, TASKS, ANNOTATORS, TRACKERS):
        assert each.names()
        for name in each.names():
            assert each.get(name) is not None


def test_the_later_value_of_a_name_counts(colours):
    colours.register("red", 1)
    colours.register("red", 2)
    assert (colours.get("red"), colours.names().count("red")) == (2, 1)


def test_the_packages_own_names_cannot_be_taken(colours):
    with pytest.raises(ConfigError, match=r"^the colour pi comes with the package; choose another name$"):
        colours.register("pi", 3)
    assert colours.get("pi") > 3


@pytest.mark.parametrize("name", ["", " ", " red", "red ", "a/b", "a\\b", "a,b", "a:b"])
def test_what_could_not_be_written_in_a_config_or_as_a_folder_is_no_name(colours, name):
    with pytest.raises(ConfigError, match=re.escape(f"{name!r} is no colour's name; use letters, digits and undersc")):
        colours.register(name, 1)


@pytest.mark.parametrize(
    ("name", "where", "said"),
    [
        ("rid", None, "colour names rid, which does not exist (did you mean red?); choose from pi, tau, red"),
        ("rid", "paint.colour", "paint.colour names rid, which does not exist (did you mean red?); choose from pi, ta"),
        ("xyz", None, "colour names xyz, which does not exist; choose from pi, tau, red"),
        ("", None, "colour names , which does not exist; choose from"),
    ],
)
def test_a_name_that_there_is_not_lists_those_that_there_are(colours, name, where, said):
    colours.register("red", 1)
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        colours.get(name, where)


# Entry points


def test_what_is_installed_is_found_by_its_entry_point(colours, installed):
    installed |= {"green": "math:e", "amber": "math:inf"}
    colours.register("red", 1)
    assert colours.names() == ["pi", "tau", "amber", "green", "red"]
    assert "green" in colours
    assert colours.get("green") == import_module("math").e
    with pytest.raises(ConfigError, match=r"did you mean green\?"):
        colours.get("grean")


def test_the_package_and_what_is_registered_come_before_entry_points(colours, installed):
    installed |= {"pi": "math:e", "red": "math:e"}
    colours.register("red", 1)
    assert (colours.get("pi") > 3, colours.get("red")) == (True, 1)
    assert colours.names() == ["pi", "tau", "red"]


def test_an_entry_point_may_name_a_module_that_registers(colours, installed, tmp_path, monkeypatch):
    (tmp_path / "paints.py").write_text(
        "import builtins\nbuiltins.colours_of_a_test.register('green', 'of the module')"
    )
    monkeypatch.setattr("builtins.colours_of_a_test", colours, raising=False)
    installed["green"] = "paints"
    assert colours.get("green") == "of the module"
    del sys.modules["paints"]


def test_an_entry_point_is_loaded_once(colours, installed, tmp_path):
    (tmp_path / "counted_paint.py").write_text(
        "class Green:\n    pass\n\n\ndef __getattr__(name):\n    return Green()\n"
    )
    installed["green"] = "counted_paint:green"
    first = colours.get("green")
    assert type(first).__name__ == "Green"
    assert colours.get("green") is first
    del sys.modules["counted_paint"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("green", "no_such_paint:x", "installed package paint cannot be loaded: ModuleNotFoundError: No module named"),
        ("green", "math:green", "installed package paint cannot be loaded: AttributeError: module 'math' has no attr"),
        ("green", "broken_paint:x", "installed package paint cannot be loaded: ZeroDivisionError: division by zero"),
        ("orphan", "broken_paint:x", "cannot be loaded: ZeroDivisionError: division by zero"),
    ],
)
def test_an_entry_point_that_fails_names_its_package(colours, installed, tmp_path, name, value, said):
    (tmp_path / "broken_paint.py").write_text("1 / 0\n")
    installed[name] = value
    with pytest.raises(ConfigError, match=f"^the colour {name} of .*{re.escape(said)}"):
        colours.get(name)


# Plug-ins


@pytest.fixture
def plugin(tmp_path, registries, monkeypatch):
    """Writes a Python file that can be named as a plug-in, or as a module."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("star_jax_plugin_", "mine", "package_of_mine")):
            del sys.modules[name]


REGISTERS = "from star_jax.registry import TRACKERS\nTRACKERS.register('of_mine', __name__)\n"


def test_a_file_is_imported_under_a_name_that_no_other_has(plugin, tmp_path):
    load_plugins([str(plugin(REGISTERS))])
    first = TRACKERS.get("of_mine")
    assert re.fullmatch(r"star_jax_plugin_mine_[0-9a-f]{8}", first)
    load_plugins([str(plugin(REGISTERS, "other/mine.py"))])
    assert TRACKERS.get("of_mine") != first
    assert sys.modules[first].__file__ == str(tmp_path / "mine.py")


@pytest.mark.parametrize("named", ["relative", "home", "with a folder", "upper"])
def test_a_file_may_be_named_in_any_way(plugin, monkeypatch, tmp_path, named):
    plugin(REGISTERS, "folder/mine.py")
    monkeypatch.chdir(tmp_path / "folder" if named == "relative" else tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {
        "relative": "mine.py",
        "home": "~/folder/mine.py",
        "with a folder": "folder/mine.py",
        "upper": "folder/../folder/mine.py",
    }
    load_plugins([names[named]])
    assert "of_mine" in TRACKERS


def test_a_file_is_imported_once_a_process_however_it_is_named(plugin, tmp_path, monkeypatch):
    counted = "import builtins\nbuiltins.imports_of_a_test.append(1)\n"
    monkeypatch.setattr("builtins.imports_of_a_test", imports := [], raising=False)
    path = plugin(counted)
    monkeypatch.chdir(tmp_path)
    load_plugins([str(path), "mine.py"])
    load_plugins([str(path)])
    assert imports == [1]


def test_a_module_is_imported_by_its_name(plugin):
    plugin("", "package_of_mine/__init__.py")
    plugin(REGISTERS, "package_of_mine/strategies.py")
    load_plugins(["package_of_mine.strategies"])
    assert TRACKERS.get("of_mine") == "package_of_mine.strategies"


def test_plugins_are_imported_in_order_and_nothing_is_nothing(plugin):
    load_plugins([])
    one = plugin("from star_jax.registry import TRACKERS\nTRACKERS.register('of_mine', 1)\n", "one.py")
    other = plugin("from star_jax.registry import TRACKERS\nTRACKERS.register('of_mine', 2)\n", "other.py")
    load_plugins([str(one), str(other)])
    assert TRACKERS.get("of_mine") == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py", "plugins names nowhere.py; there is no such file, check the path"),
        ("no/where", "plugins names no/where; there is no such file, check the path"),
        (
            "no_such_module",
            "plugins names no_such_module; there is no such module, name a file that ends in .py",
        ),
        ("no_such.module", "plugins names no_such.module; there is no such module"),
        ("json.no_such_part", "plugins names json.no_such_part; there is no such module"),
    ],
)
def test_what_is_not_there_is_named(registries, monkeypatch, tmp_path, name, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}"):
        load_plugins([name])


def test_a_folder_and_a_file_of_another_kind_are_no_plugin(plugin, tmp_path):
    (tmp_path / "notes.txt").write_text("x = 1")
    for name, said in (("", "there is no such file"), ("notes.txt", "is no Python file; name one that ends in .py")):
        with pytest.raises(ConfigError, match=said):
            load_plugins([f"{tmp_path}/{name}"])


BROKEN = {
    "a syntax error": ("x = 1\n\ndef f(:\n", 3, "SyntaxError: invalid syntax"),
    "an exception": ("x = 1\n\n\nx / 0\n", 4, "ZeroDivisionError: division by zero"),
    "an exception in a function of its own": ("def f():\n    raise KeyError('a')\n\n\nf()\n", 2, "KeyError: 'a'"),
    "an exception of a library": ("import json\n\njson.loads('{')\n", 3, "JSONDecodeError: Expecting property name"),
    "an import that fails": ("\nimport no_such_library\n", 2, "ModuleNotFoundError: No module named 'no_such_library'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_fails_is_named_with_its_line(plugin, kind):
    text, line, said = BROKEN[kind]
    path = plugin(text)
    for _ in range(2):  # the second time it is tried again
        with pytest.raises(ConfigError) as caught:
            load_plugins([str(path)])
        assert str(caught.value).startswith(f"{path}, line {line}: the plug-in cannot be imported: {said}")
    plugin(REGISTERS)
    load_plugins([str(path)])
    assert "of_mine" in TRACKERS


def test_a_module_that_fails_is_named(plugin):
    plugin("1 / 0\n", "mine_broken.py")
    plugin("import no_such_library\n", "mine_needy.py")
    for name, said in (
        ("mine_broken", "ZeroDivisionError: division by zero"),
        ("mine_needy", "ModuleNotFoundError: No module named 'no_such_library'"),
    ):
        with pytest.raises(ConfigError, match=rf"^{name}, line 1: the plug-in cannot be imported: {said}$"):
            load_plugins([name])


def test_what_the_package_refuses_of_a_plugin_is_said_as_it_is(plugin):
    path = plugin("from star_jax.registry import TRACKERS\nTRACKERS.register('wandb', 1)\n")
    with pytest.raises(ConfigError, match=f"^{path}: the tracker wandb comes with the package; choose another name$"):
        load_plugins([str(path)])
