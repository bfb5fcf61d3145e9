"""Names of strategies, tasks, annotators and trackers: built in, from a user's own module, or from entry points.

A name is looked up among what has been registered, then among what the package brings, then among the entry points of
what is installed. What the package brings is named by its place, so that looking a name up imports that and no more.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from star_jax.errors import ConfigError

_NAME = re.compile(r"\w[\w.-]*")
"""What a name is made of: it becomes the name of a folder, and part of a list that commas separate."""


class Registry:
    """Values by name.

    Args:
      kind: what the values are, in the singular, for messages.
      group: entry points of this group are looked up too.
      built_in: name -> `module:attribute` of what the package brings.
      reserved: names that mean something else where the value is asked for.

    Example:
      >>> colours = Registry("colour", "example.colours", {})
      >>> colours.register("red", "#f00")
      >>> colours.get("red")
      '#f00'
    """

    def __init__(self, kind: str, group: str, built_in: Mapping[str, str], reserved: Iterable[str] = ()) -> None:
        self.kind = kind
        self._reserved = frozenset(reserved)
        self.group = group
        self._built_in = dict(built_in)
        self._registered: dict[str, Any] = {}

    def register(self, name: str, value: Any) -> None:
        """Gives `value` a name; registering under the same name again replaces what was registered before.

        Raises:
          ConfigError: the name is empty, or one that the package itself uses.
        """
        if not _NAME.fullmatch(name) or name in self._reserved:
            raise ConfigError(f"{name!r} is no {self.kind}'s name; use letters, digits and underscores")
        if name in self._built_in:
            raise ConfigError(f"the {self.kind} {name} comes with the package; choose another name")
        self._registered[name] = value

    def names(self) -> list[str]:
        """Every name there is: the package's own first, in their order, then the others, sorted."""
        others = {*self._registered, *self._entry_points()} - set(self._built_in)
        return [*self._built_in, *sorted(others)]

    def __contains__(self, name: str) -> bool:
        return name in self._registered or name in self._built_in or name in self._entry_points()

    def get(self, name: str, where: str | None = None) -> Any:
        """The value of that name.

        Args:
          name: of it.
          where: the setting that has the name, for the message; the kind where None.

        Raises:
          ConfigError: there is none, and the message lists those there are; or an entry point cannot be loaded.
        """
        if name in self._registered:
            return self._registered[name]
        if name in self._built_in:
            module, _, attribute = self._built_in[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        point = self._entry_points().get(name)
        if point is None:
            near = difflib.get_close_matches(name, self.names(), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ConfigError(
                f"{where or self.kind} names {name}, which does not exist{hint}; choose from {', '.join(self.names())}"
            )
        try:
            value = point.load()
        except Exception as error:  # whatever an installed package does when it is imported
            raise ConfigError(
                f"the {self.kind} {name} of the installed package {_package(point)} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        # An entry point may name a module that registers, or the value itself.
        found = self._registered.setdefault(name, value)
        if isinstance(found, ModuleType):
            raise ConfigError(
                f"the installed package {_package(point)} names the module {found.__name__} for the {self.kind} "
                f"{name}, and that module registers no such name"
            )
        return found

    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        points = metadata.entry_points(group=self.group)
        return {point.name: point for point in points if _NAME.fullmatch(point.name)}


def _package(point: metadata.EntryPoint) -> str:
    return "it came with" if point.dist is None else point.dist.name


_STRATEGIES = "star_jax.acquisition.strategies"
_VECTOR_STRATEGIES = "star_jax.acquisition.vector_strategies"
_TASKS = "star_jax.data.tasks"

STRATEGIES = Registry(
    "strategy",
    "star_jax.strategies",
    {
        name: f"{_STRATEGIES}:{name}"
        for name in (
            *("random", "entropy", "pe", "entropy_subtract", "pe_subtract", "entropy_dynamic", "pe_dynamic"),
            *("star", "star_constant", "star_reversed", "base_only", "bald", "least_confidence", "margin"),
            *("vote_entropy", "semantic_entropy", "pairwise_disagreement", "star_votes"),
            *("group_balanced", "class_balanced", "epig"),
        )
    }
    | {
        name: f"{_VECTOR_STRATEGIES}:{name}"
        for name in (
            *("k_center", "typiclust", "facility_location", "log_det", "badge", "expected_gradient_length"),
            *("huds", "task_diversity", "uncertain_then_diverse", "rds_plus", "sift"),
        )
    },
    reserved=("auto",),
)
"""Name -> `acquisition.strategy.Strategy`, or a function of the acquisition settings that makes one."""

TASKS = Registry(
    "task",
    "star_jax.tasks",
    {
        "gsm8k": f"{_TASKS}.gsm8k:GSM8K",
        "boolq": f"{_TASKS}.boolq:BOOLQ",
        "boolq_passage": f"{_TASKS}.boolq:BOOLQ_PASSAGE",
        "openbookqa": f"{_TASKS}.openbookqa:OPENBOOKQA",
        "skills": "star_jax.benchmarks.skills.task:SKILLS",
        "released": f"{_TASKS}.released:RELEASED",
        "generic": f"{_TASKS}.generic:generic_task",
    },
)
"""Name -> `data.tasks.task.Task`, or a function of the format section and the tokenizer that makes one."""

ANNOTATORS = Registry(
    "annotator",
    "star_jax.annotators",
    {
        "oracle": "star_jax.annotators.oracle:oracle",
        "csv": "star_jax.annotators.csv_file:csv_file",
        "simulated": "star_jax.annotators.simulated:simulated",
        "llm": "star_jax.annotators.llm.annotator:llm",
        "label_studio": "star_jax.annotators.label_studio.annotator:label_studio",
    },
    reserved=("auto",),
)
"""Name -> function of an `annotators.annotator.AnnotatorContext` that makes an `Annotator`."""

TRACKERS = Registry(
    "tracker",
    "star_jax.trackers",
    {
        "console": "star_jax.tracking.tracker:ConsoleTracker",
        "tensorboard": "star_jax.tracking.tensorboard:TensorBoardTracker",
        "trackio": "star_jax.tracking.wandb_like:trackio_tracker",
        "wandb": "star_jax.tracking.wandb_like:wandb_tracker",
    },
)
"""Name -> function without arguments that makes a `tracking.tracker.Tracker`; the console is always there."""


def load_plugins(plugins: Iterable[str]) -> None:
    """Imports modules that register what they bring.

    Args:
      plugins: paths of Python files, or dotted names of modules that can be imported. A file is imported once a
        process, whatever the number of times that it is named.

    Raises:
      ConfigError: there is no such file or module, or it fails when it is imported; the line is named.
    """
    for plugin in plugins:
        _load_file(plugin) if _is_file(plugin) else _load_module(plugin)


def source_fingerprint(values: Iterable[Any]) -> str | None:
    """Hash of the files that functions come from, those of the package itself left out; None where there are no others.

    Args:
      values: functions, or objects of classes.
    """
    names = {getattr(value, "__module__", None) or type(value).__module__ for value in map(_innermost, values)}
    modules = [sys.modules[name] for name in sorted(names) if name in sys.modules and not name.startswith("star_jax.")]
    files = sorted(file for file in (getattr(module, "__file__", None) for module in modules) if file)
    if not files:
        return None
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files)).hexdigest()


def _innermost(value: Any) -> Any:
    """The function inside of `functools.partial` and of decorators such as `jit`."""
    while isinstance(value, partial):
        value = value.func
    return inspect.unwrap(value) if callable(value) else value


def _is_file(plugin: str) -> bool:
    return plugin.endswith(".py") or "/" in plugin or "\\" in plugin


def _load_file(plugin: str) -> None:
    path = Path(plugin).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"plugins names {plugin}; there is no such file, check the path")
    name = f"star_jax_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plugins names {plugin}, which is no Python file; name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code runs in there, and can fail in any way
        del sys.modules[name]
        raise ConfigError(_failed(plugin, str(path), error)) from error


def _load_module(plugin: str) -> None:
    try:
        importlib.import_module(plugin)
    except ModuleNotFoundError as error:
        if error.name is None or not (plugin == error.name or plugin.startswith(f"{error.name}.")):
            raise ConfigError(_failed(plugin, _file_of(plugin), error)) from error
        raise ConfigError(
            f"plugins names {plugin}; there is no such module, name a file that ends in .py or install the module"
        ) from error
    except Exception as error:  # as in a file
        raise ConfigError(_failed(plugin, _file_of(plugin), error)) from error


def _file_of(module: str) -> str:
    """Where a module is that could not be imported; its name where that cannot be told either."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # the package that it is in fails
        return module
    return module if spec is None or spec.origin is None else spec.origin


def _failed(plugin: str, path: str, error: Exception) -> str:
    if isinstance(error, ConfigError):
        return f"{plugin}: {error}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    line = f", line {lines[-1]}" if lines else ""
    return f"{plugin}{line}: the plug-in cannot be imported: {type(error).__name__}: {error}"
