"""Event files as TensorBoard reads them back."""

import warnings

import pytest
import yaml

from star_jax.config import ExperimentConfig
from star_jax.tracking.tensorboard import FOLDER, TensorBoardTracker
from star_jax.tracking.tracker import TrackedRun

CONFIG = ExperimentConfig(strategies=("star", "pe")).to_dict()


def read(folder):
    """What TensorBoard has of a folder: scalars as (step, value), texts as they are shown."""
    with warnings.catch_warnings():
        # Of its own and protobuf's making, when it is first imported.
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    tags = found.Tags()
    scalars = {name: [(event.step, event.value) for event in found.Scalars(name)] for name in tags["scalars"]}
    texts = {
        name: [event.tensor_proto.string_val[0].decode() for event in found.Tensors(name)] for name in tags["tensors"]
    }
    return scalars, texts


@pytest.fixture
def tracker():
    return TensorBoardTracker()


def test_scalars_and_configuration_are_in_the_runs_folder(tracker, tmp_path):
    tracker.start(TrackedRun("out", "star/seed-0", tmp_path, CONFIG))
    tracker.log({"train/cross_entropy": 2.5}, 0)
    tracker.log({"train/cross_entropy": 1.5}, 1)
    tracker.log({"round/accuracy": 0.25, "round/ece": 0.125}, 20)
    tracker.finish()
    scalars, texts = read(tmp_path / FOLDER)
    assert scalars == {
        "train/cross_entropy": [(0, 2.5), (1, 1.5)],
        "round/accuracy": [(20, 0.25)],
        "round/ece": [(20, 0.125)],
    }
    ((name, (text,)),) = texts.items()
    assert name.startswith("config")
    stored = yaml.safe_load(text.strip().removeprefix("```").removesuffix("```"))
    assert (stored["strategies"], stored["loop"]) == (["star", "pe"], CONFIG["loop"])


def test_a_run_that_is_taken_up_goes_on_in_the_same_curves(tracker, tmp_path):
    for resumed, step in ((False, 20), (True, 30)):
        tracker.start(TrackedRun("out", "star/seed-0", tmp_path, CONFIG, resumed))
        tracker.log({"round/accuracy": step / 100}, step)
        tracker.finish()
    tracker.finish()  # twice does no harm
    scalars, texts = read(tmp_path / FOLDER)
    assert [step for step, _ in scalars["round/accuracy"]] == [20, 30]
    assert len(next(iter(texts.values()))) == 1


def test_runs_keep_to_their_own_folders_and_the_report_is_with_the_last(tracker, tmp_path):
    for name in ("one", "other"):
        tracker.start(TrackedRun("out", f"{name}/seed-0", tmp_path / name, CONFIG))
        tracker.log({"round/accuracy": len(name)}, 20)
        tracker.finish()
    tracker.report(tmp_path / "report.html")
    found = {name: read(tmp_path / name / FOLDER) for name in ("one", "other")}
    assert {name: scalars for name, (scalars, _) in found.items()} == {
        "one": {"round/accuracy": [(20, 3.0)]},
        "other": {"round/accuracy": [(20, 5.0)]},
    }
    reports = [name for name, (_, texts) in found.items() if any(key.startswith("report") for key in texts)]
    assert reports == ["other"]


def test_a_report_without_a_run_is_nothing(tracker, tmp_path):
    tracker.report(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
