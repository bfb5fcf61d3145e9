"""The run folder: what it writes, when it lets nobody in, and what it refuses."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from star_jax.config import (
    AcquisitionConfig,
    ExperimentConfig,
    GenerationConfig,
    LoopConfig,
    MeshConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.documents import UnreadableError
from star_jax.errors import ConfigError
from star_jax.runs.files import plain, read_json, read_yaml, write_yaml_atomic
from star_jax.runs.run_folder import RunFolder
from star_jax.runs.run_settings import FIT_TO_MEMORY, choice_origin, differences, flatten
from star_jax.runs.schemas import check_settings

CONFIG = ExperimentConfig(output_dir="out", strategies=("star", "random"), seeds=(3, 4)).to_dict()


def open_folder(root, config=CONFIG):
    return RunFolder.open(root, "star", 3, config, device="cpu")


def queried(number):
    return [{"id": f"p{number}", "score": None, "base_uncertainty": 0.5, "rank": 0}]


def predictions(number):
    return [{"id": "t0", "prediction": f"1 {number}", "reference": "1", "correct": False, "confidence": 0.25}]


def write_rounds(folder, count):
    for number in range(count):
        folder.write_round(number, queried(number), predictions(number))
        folder.append_metrics({"round": number, "labelled": 10 * (number + 1), "accuracy": 0.5})


def test_a_new_folder_records_configuration_and_environment(tmp_path):
    with open_folder(tmp_path) as folder:
        assert folder.path == tmp_path / "star" / "seed-3"
        stored = read_yaml(folder.path / "config.yaml")
        recorded = read_json(folder.path / "environment.json")
    assert list(stored) == list(CONFIG)
    assert (stored["strategies"], stored["seeds"]) == (["star"], [3])
    assert differences(stored, CONFIG) == {}
    assert recorded["device"] == "cpu"
    assert recorded["packages"]["numpy"].count(".") >= 1
    assert recorded["started"].endswith("+00:00")
    assert "python" in recorded["command"] or "pytest" in recorded["command"]


def test_rounds_are_written_and_dropped(tmp_path):
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 4)
        assert [row["labelled"] for row in folder.metrics()] == [10, 20, 30, 40]
        assert json.loads((folder.path / "rounds/002/queried.jsonl").read_text()) == queried(2)[0]
        assert json.loads((folder.path / "rounds/002/predictions.jsonl").read_text()) == predictions(2)[0]
        with pytest.raises(ValueError, match="continues with round 4, not 6"):
            folder.append_metrics({"round": 6})
        # A round folder without its row is what a run leaves when it is killed between the two.
        folder.write_round(4, queried(4), predictions(4))
        folder.drop_rounds_from(4)
        assert len(folder.metrics()) == 4
        assert sorted(os.listdir(folder.path / "rounds")) == ["000", "001", "002", "003"]
        folder.drop_rounds_from(2)
        assert [row["round"] for row in folder.metrics()] == [0, 1]
        assert sorted(os.listdir(folder.path / "rounds")) == ["000", "001"]
        folder.append_metrics({"round": 2})


def test_a_summary_marks_the_end_and_goes_with_a_dropped_round(tmp_path):
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 2)
        assert not folder.finished
        summary = {"strategy": "star", "seed": 3, "labelled": 20, "accuracy": 0.5, "ece": 0.1, "aubc": None}
        folder.write_summary(summary)
        assert folder.finished
        assert folder.summary() == summary
        folder.drop_rounds_from(2)
        assert folder.finished
        folder.drop_rounds_from(1)
        assert not folder.finished


def test_opened_again_it_keeps_its_files(tmp_path):
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 2)
        before = {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        (folder.path / ".metrics.jsonl.1.tmp").write_text("half")
    with open_folder(tmp_path, {**CONFIG, "output_dir": "elsewhere", "seeds": [3], "strategies": ["star"]}) as folder:
        assert {str(path): path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_changed_configuration_is_refused_with_every_key(tmp_path):
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 1)
    changed = ExperimentConfig(loop=LoopConfig(rounds=5, initial_labels=7)).to_dict()
    changed["data"]["pool_limit"] = 400
    with pytest.raises(ConfigError) as caught:
        open_folder(tmp_path, changed)
    message = str(caught.value)
    assert "loop.rounds: 10 in the folder, 5 now" in message
    assert "loop.initial_labels: 500 in the folder, 7 now" in message
    assert "data.pool_limit: none in the folder, 400 now" in message
    changed["unknown"] = 1
    assert differences(changed, CONFIG)["unknown"] == (1, "absent")
    assert message.count(" now") == 3
    assert "--output-dir" in message
    assert "\n" not in message
    open_folder(tmp_path).close()


def without(config, *names):
    """The configuration as a release wrote it that did not have these settings."""
    return {
        key: {name: item for name, item in value.items() if f"{key}.{name}" not in names}
        if isinstance(value, dict)
        else value
        for key, value in config.items()
        if key not in names
    }


def reopened(root, stored, config):
    """A folder with a finished round whose config.yaml is what a former release wrote, opened with today's."""
    with open_folder(root, config) as folder:
        write_rounds(folder, 1)
    write_yaml_atomic(folder.path / "config.yaml", {**stored, "strategies": ["star"], "seeds": [3]})
    return open_folder(root, config)


LATER = ("plugins", "annotator", "track", "model.ignored_fields", "evaluation.bins", "acquisition.power")


def test_a_setting_that_a_former_release_did_not_have_counts_as_its_default(tmp_path):
    former = without(CONFIG, *LATER)
    assert len(former) == len(CONFIG) - 3
    assert differences(former, CONFIG) == {}
    reopened(tmp_path / "same", former, CONFIG).close()
    changed = ExperimentConfig(annotator="csv").to_dict()
    changed["evaluation"]["bins"] = 7
    assert differences(former, changed) == {"annotator": ("auto", "csv"), "evaluation.bins": (15, 7)}
    with pytest.raises(ConfigError, match=r"\(annotator: auto in the folder, csv now; evaluation.bins: 15 in the"):
        reopened(tmp_path / "other", former, changed)


def test_a_setting_that_there_is_no_more_still_counts(tmp_path):
    former = {**CONFIG, "loop": {**CONFIG["loop"], "of_before": 3}}
    assert differences(former, CONFIG) == {"loop.of_before": (3, "absent")}


def test_the_released_arithmetic_of_a_former_folder_is_todays_scale(tmp_path):
    """Written by a release that had `acquisition.arithmetic` and no scale of that name."""
    now = ExperimentConfig(acquisition=AcquisitionConfig(normaliser="released")).to_dict()
    former = {**now, "acquisition": {**now["acquisition"], "normaliser": None, "arithmetic": "released"}}
    assert differences(former, now) == {}
    reopened(tmp_path / "released", former, now).close()
    assert differences(former, CONFIG) == {"acquisition.normaliser": ("released", None)}
    with pytest.raises(ConfigError, match=r"acquisition.normaliser: released in the folder, none now"):
        reopened(tmp_path / "standard", former, CONFIG)
    standard = {**CONFIG, "acquisition": {**CONFIG["acquisition"], "arithmetic": "standard"}}
    assert differences(standard, CONFIG) == {}
    assert differences(standard, now) == {"acquisition.normaliser": (None, "released")}


def test_what_is_shown_and_where_names_come_from_may_change(tmp_path):
    """Trackers see a run and change nothing in it; what a plug-in brings is told apart by the hash of its files."""
    changed = ExperimentConfig(track=("tensorboard",), plugins=("mine.py",)).to_dict()
    assert differences(CONFIG, changed) == {}
    assert choice_origin(changed, {}) == choice_origin(CONFIG, {})
    facts = [{"plugins": "one"}, {"plugins": "two"}, {}]
    assert len({choice_origin(CONFIG, one) for one in facts}) == 3
    with RunFolder.open(tmp_path, "star", 3, CONFIG, "cpu", facts[0]) as folder:
        write_rounds(folder, 1)
    with pytest.raises(ConfigError, match=r"\(the files of the strategy or the task have changed\)"):
        RunFolder.open(tmp_path, "star", 3, CONFIG, "cpu", facts[1])
    RunFolder.open(tmp_path, "star", 3, CONFIG, "cpu", facts[0]).close()


def test_what_fits_a_run_to_memory_may_change_on_the_way(tmp_path):
    """And is what config.yaml holds once the run goes on."""
    changed = ExperimentConfig(
        scoring=ScoringConfig(batch_size=3),
        generation=GenerationConfig(batch_size=5),
        training=TrainingConfig(rematerialise=True),
        mesh=MeshConfig(data=2, fsdp=4),
    ).to_dict()
    assert differences(CONFIG, changed).keys() == set(FIT_TO_MEMORY)
    assert choice_origin(changed, {}) == choice_origin(CONFIG, {})
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 1)
    with open_folder(tmp_path, changed) as folder:
        assert differences(read_yaml(folder.path / "config.yaml"), CONFIG) == {}
        assert len(folder.metrics()) == 1
        folder.record()
        assert differences(read_yaml(folder.path / "config.yaml"), changed) == {}
        assert read_yaml(folder.path / "config.yaml")["seeds"] == [3]


def test_before_a_round_is_finished_everything_may_change(tmp_path):
    """Also where a killed run left the row of a round that does not count."""
    changed = ExperimentConfig(loop=LoopConfig(rounds=5)).to_dict()
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 1)
        folder.drop_rounds_from(0)
    with open_folder(tmp_path, changed) as folder:
        assert differences(read_yaml(folder.path / "config.yaml"), changed) == {}


def test_one_process_at_a_time(tmp_path):
    program = (
        "import sys\n"
        "from star_jax.errors import ConfigError\n"
        "from star_jax.runs.run_folder import RunFolder\n"
        "try:\n"
        "    RunFolder.open(sys.argv[1], 'star', 3, {}, device='cpu')\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )

    def other():
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
        )

    with RunFolder.open(tmp_path, "star", 3, {}, device="cpu") as folder:
        assert f"{folder.path} is in use by another process" in other().stdout
        with pytest.raises(ConfigError, match="in use"):
            RunFolder.open(tmp_path, "star", 3, {}, device="cpu")
        RunFolder.open(tmp_path, "star", 4, {}, device="cpu").close()
    folder.close()
    assert other().stdout == ""


def test_a_path_that_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "star").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        open_folder(tmp_path)


FIRST_RELEASE = {
    "model": "path dtype quantization ignored_fields adapter",
    "lora": "rank alpha dropout training_dropout rslora targets init",
    "training": "learning_rate schedule warmup_fraction decay_fraction epochs batch_size "
    "adam_b1 adam_b2 gradient_clip decay_a decay_b l2_b confidence_penalty entropy_floor label_smoothing "
    "validation_fraction replay replay_rows",
    "scoring": "answers mc_samples dropout",
    "acquisition": "reduction normaliser schedule constant selection power",
    "loop": "initial_labels labels_per_round rounds",
    "data": "task train test regime pool_size pool_limit test_limit max_prompt_tokens max_response_tokens "
    "too_long on_bad_row",
    "format": "prompt response id group chat system answers match",
    "evaluation": "confidence bins",
}
"""Section -> the settings of the first release that a choice depends on; a new setting goes into `LATER`, not here."""


def test_a_choice_of_the_first_release_is_taken_up():
    """Its hash was over settings that had acquisition.arithmetic, no annotator and no labels."""
    facts = {"pool": "p", "test": "t", "model": "m"}
    for normaliser, arithmetic, former in (
        (None, "standard", None),
        ("rank", "standard", "rank"),
        ("released", "released", None),
    ):
        config = ExperimentConfig(acquisition=AcquisitionConfig(normaliser=normaliser)).to_dict()
        names = [f"{section}.{name}" for section, words in FIRST_RELEASE.items() for name in words.split()]
        old = {name: flatten(plain(config))[name] for name in names}
        old |= {"acquisition.arithmetic": arithmetic, "acquisition.normaliser": former}
        want = hashlib.sha256(json.dumps([old, facts], sort_keys=True).encode()).hexdigest()
        assert choice_origin(config, facts) == want
    other = ExperimentConfig(annotator="csv").to_dict()
    assert choice_origin(other, facts) != choice_origin(ExperimentConfig().to_dict(), facts)


def test_settings_compare_whichever_side_is_the_older():
    new = ExperimentConfig().to_dict()
    old = {name: value for name, value in new.items() if name != "annotator"}
    old["acquisition"] = {**old["acquisition"], "arithmetic": "standard"}
    assert differences(new, old) == differences(old, new) == {}


def test_finished_rounds_without_their_configuration_are_refused(tmp_path):
    """Written anew, it would say that they were made with what is asked for today."""
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 1)
    (folder.path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"has finished rounds and no config\.yaml.*; put it back, or delete"):
        open_folder(tmp_path)
    assert not (folder.path / "config.yaml").exists()


def test_corrections_of_a_round_are_kept_with_it(tmp_path):
    with open_folder(tmp_path) as folder:
        write_rounds(folder, 2)
        folder.write_corrected(1, [{"id": "a", "response": None, "before": "x"}])
        assert (folder.corrected(0), folder.corrected(1)) == ([], [{"id": "a", "response": None, "before": "x"}])
        folder.drop_rounds_from(1)
        assert folder.corrected(1) == []


@pytest.mark.parametrize("value", ["auto", 4])
def test_settings_of_several_types_are_read_back(value):
    check_settings(plain(ExperimentConfig(mesh=MeshConfig(fsdp=value)).to_dict()))
    with pytest.raises(UnreadableError, match=r"has 1.5 as 'fsdp'; it must be a whole number or a text or null"):
        check_settings({"mesh": {"fsdp": 1.5}})
