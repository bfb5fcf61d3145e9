"""trackio as it keeps runs on this machine, and wandb by what it is told."""

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from star_jax.tracking.tracker import TrackedRun
from star_jax.tracking.wandb_like import AXES, WandbLikeTracker

CONFIG = {"loop": {"rounds": 3}, "strategies": ["star"]}


class Library(SimpleNamespace):
    """What a library with wandb's interface is told, in order."""

    def __init__(self, name):
        super().__init__(__name__=name, calls=[])

    def init(self, **options):
        self.calls.append(("init", options))
        return SimpleNamespace(define_metric=lambda *names, **options: self.calls.append(("axis", *names, options)))

    def log(self, values):
        self.calls.append(("log", values))

    def finish(self):
        self.calls.append(("finish",))

    def Html(self, page):
        return ("page", page)


def run_in(folder, resumed=False):
    return TrackedRun("experiment", "star/seed-0", folder, CONFIG, resumed)


def play(tracker, run):
    tracker.start(run)
    tracker.log({"train/cross_entropy": 2.5}, 0)
    tracker.log({"round/accuracy": 0.5, "round/ece": 0.25}, 20)
    tracker.finish()
    tracker.finish()
    run.folder.mkdir(exist_ok=True)
    report = run.folder / "report.html"
    report.write_text("<html>ä report</html>", encoding="utf-8")
    tracker.report(report)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_library_is_told_of_the_run_its_figures_and_its_end_once(tmp_path, name):
    library = Library(name)
    play(WandbLikeTracker(library), run_in(tmp_path))
    (_, options), *rest = library.calls
    # The report comes when the run has ended: it is opened once more.
    again = next(place for place, call in enumerate(rest) if call[0] == "init")
    assert rest[again] == ("init", options)
    rest, last = rest[:again], [call for call in rest[again + 1 :] if call[0] != "axis"]
    assert last == [("log", {"report": ("page", "<html>ä report</html>")}), ("finish",)]
    assert (options["project"], options["name"], options["resume"]) == ("experiment", "star/seed-0", "allow")
    assert options["config"] == CONFIG
    assert ("id" in options) == ("dir" in options) == (name == "wandb")  # trackio knows a run by its name
    axes = [call[1:] for call in rest if call[0] == "axis"]
    assert axes == [(f"{kind}/*", {"step_metric": axis}) for kind, axis in AXES.items()] * (name == "wandb")
    assert [call for call in rest if call[0] != "axis"] == [
        ("log", {"train/cross_entropy": 2.5, AXES["train"]: 0}),
        ("log", {"round/accuracy": 0.5, "round/ece": 0.25, AXES["round"]: 20}),
        ("finish",),
    ]


def test_the_same_folder_is_the_same_run_of_wandb_and_another_one_is_not(tmp_path):
    library = Library("wandb")
    for run in (run_in(tmp_path / "one"), run_in(tmp_path / "one", resumed=True), run_in(tmp_path / "other")):
        play(WandbLikeTracker(library), run)
    opened = [options["id"] for name, *rest in library.calls if name == "init" for options in rest]
    first, again, other = opened[::2]
    assert first == again != other
    assert opened[1::2] == [first, again, other]  # for the report


TRACKED = """
import sys
from pathlib import Path
from star_jax.tracking.tracker import TrackedRun
from star_jax.tracking.wandb_like import trackio_tracker

tracker = trackio_tracker()
for resumed, steps in ((False, (0, 1)), (True, (2,))):
    tracker.start(TrackedRun("experiment", "star/seed-0", Path(sys.argv[1]), {"loop": {"rounds": 3}}, resumed))
    for step in steps:
        tracker.log({"train/cross_entropy": 3.0 - step}, step)
    tracker.log({"round/accuracy": 0.25 * len(steps)}, 10 * len(steps))
    tracker.finish()
"""


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is an extra")
def test_trackio_keeps_the_figures_of_a_run_and_of_its_resumption_as_one(tmp_path):
    """In a process of its own: trackio decides where to write when it is imported."""
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "store"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", TRACKED, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "store" / "experiment.db") as store:
        rows = store.execute("select run_name, metrics from metrics order by id").fetchall()
    assert {name for name, _ in rows} == {"star/seed-0"}
    assert [json.loads(metrics) for _, metrics in rows] == [
        {"train/cross_entropy": 3.0, "train/step": 0},
        {"train/cross_entropy": 2.0, "train/step": 1},
        {"round/accuracy": 0.5, "round/labelled": 20},
        {"train/cross_entropy": 1.0, "train/step": 2},
        {"round/accuracy": 0.25, "round/labelled": 10},
    ]
