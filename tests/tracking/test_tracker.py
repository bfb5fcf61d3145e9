"""All trackers as one: what reaches them, and what happens to one that fails or whose library is not there."""

import builtins
import math

import numpy as np
import pytest

from star_jax.errors import ConfigError
from star_jax.registry import TRACKERS
from star_jax.tracking.tracker import TrackedRun, Tracking, open_trackers, register_tracker


class Listed:
    """Writes down whatever it is told, and fails at what it is made to fail at."""

    def __init__(self, failing=()):
        self.calls, self.failing = [], failing

    def _told(self, name, *what):
        if name in self.failing:
            raise self.failing[name]
        self.calls.append((name, *what))

    def start(self, run):
        self._told("start", run)

    def log(self, values, step):
        self._told("log", dict(values), step)

    def finish(self):
        self._told("finish")

    def report(self, path):
        self._told("report", path)


@pytest.fixture
def run(tmp_path):
    return TrackedRun("experiment", "star/seed-0", tmp_path, {"loop": {"rounds": 3}})


def play(tracking, run):
    """A run of one round, and its report."""
    tracking.start(run)
    tracking.losses(np.asarray([3.0, 2.0], np.float32), 4)
    tracking.log({"round/accuracy": 0.5}, 20)
    tracking.finish()
    tracking.report(run.folder / "report.html")


def calls_of(run):
    return [
        ("start", run),
        ("log", {"train/cross_entropy": 3.0}, 4),
        ("log", {"train/cross_entropy": 2.0}, 5),
        ("log", {"round/accuracy": 0.5}, 20),
        ("finish",),
        ("report", run.folder / "report.html"),
    ]


def test_every_tracker_is_told_everything_in_order(run):
    one, other, said = Listed(), Listed(), []
    play(Tracking({"one": one, "other": other}, said.append), run)
    assert one.calls == other.calls == calls_of(run)
    assert said == []


@pytest.mark.parametrize("failing", ["start", "log", "finish", "report"])
def test_a_tracker_that_fails_is_named_once_and_left_out(run, failing):
    broken, whole, said = Listed({failing: OSError("no network")}), Listed(), []
    tracking = Tracking({"broken": broken, "whole": whole}, said.append)
    play(tracking, run)
    play(tracking, run)
    assert said == ["tracker broken failed and is left out from here on: OSError: no network"]
    assert whole.calls == calls_of(run) * 2
    places = [name for name, *_ in calls_of(run)]
    assert [name for name, *_ in broken.calls] == places[: places.index(failing)]


def test_ctrl_c_is_no_failure_of_a_tracker(run):
    tracking = Tracking({"one": Listed({"log": KeyboardInterrupt()})}, print)
    with pytest.raises(KeyboardInterrupt):
        play(tracking, run)


def test_what_is_no_finite_number_is_left_out():
    listed = Listed()
    tracking = Tracking({"one": listed}, print)
    values = {
        **{"int": 3, "float": 0.5, "float32": np.float32(0.25), "int64": np.int64(7), "zero": 0.0},
        **{"none": None, "text": "0.5", "bool": True, "dict": {"a": 1}, "list": [1.0], "array": np.ones(1)},
        **{"nan": math.nan, "inf": math.inf, "minus": -np.inf, "nan32": np.float32("nan")},
    }
    tracking.log(values, 3)
    tracking.log({"none": None, "nan": math.nan}, 4)
    assert listed.calls == [("log", {"int": 3.0, "float": 0.5, "float32": 0.25, "int64": 7.0, "zero": 0.0}, 3)]
    assert all(type(value) is float for value in listed.calls[0][1].values())


def test_nothing_is_nothing(run):
    said = []
    play(Tracking({}, said.append), run)
    play(open_trackers([], said.append), run)
    assert said == []


@pytest.mark.usefixtures("registries")
def test_a_tracker_of_your_own_is_opened_by_its_name(run):
    made = []

    @register_tracker("mine")
    def mine():
        made.append(Listed())
        return made[-1]

    play(open_trackers(["mine"], print), run)
    assert [one.calls for one in made] == [calls_of(run)]
    assert TRACKERS.names() == ["console", "tensorboard", "trackio", "wandb", "mine"]
    with pytest.raises(ConfigError, match=r"^track names mime, which does not exist \(did you mean mine\?\); choose"):
        open_trackers(["mine", "mime"], print)
    with pytest.raises(ConfigError, match=r"^the tracker wandb comes with the package; choose another name$"):
        register_tracker("wandb")(Listed)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("tensorboard", "tensorboardX", "track"), ("trackio", "trackio", "track"), ("wandb", "wandb", "wandb")],
)
def test_a_library_that_is_not_there_is_one_sentence_with_how_to_get_it(monkeypatch, name, package, extra):
    whole = builtins.__import__

    def without(wanted, *arguments):
        if wanted.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {wanted!r}", name=wanted)
        return whole(wanted, *arguments)

    TRACKERS.get(name)  # else the tracker's own module would be imported below
    monkeypatch.setattr(builtins, "__import__", without)
    said = f"^track names {name}, which needs the package {package}; install it with pip install 'star_jax.{extra}.'$"
    with pytest.raises(ConfigError, match=said):
        open_trackers([name], print)


@pytest.mark.usefixtures("registries")
def test_the_library_of_a_tracker_of_your_own_comes_from_elsewhere():
    @register_tracker("mine")
    def mine():
        raise ModuleNotFoundError("No module named 'theirs'", name="theirs")

    with pytest.raises(ConfigError, match=r"needs the package theirs; install it, or take the tracker out$"):
        open_trackers(["mine"], print)


def test_the_console_is_always_there_and_says_a_line_a_round(tmp_path):
    run = TrackedRun("experiment", "star/seed-0", tmp_path, {"loop": {"rounds": 3}}, title="star seed 0")
    figures = {"round/round": 1, "round/accuracy": 0.61251, "round/ece": 0.2, "round/labelled": 20}
    for names in ((), ("console",)):
        lines = []
        tracking = open_trackers(names, lines.append)
        tracking.start(run)
        tracking.losses(np.asarray([3.0, 2.0], np.float32), 0)
        tracking.log(figures, 20)
        tracking.finish()
        tracking.log(figures, 20)
        tracking.report(tmp_path)
        assert lines == ["star seed 0, round 1/2: 20 labels, accuracy 0.613, ECE 0.200"]
