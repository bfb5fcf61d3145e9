"""Runs that wait for people, found from their folder without loading anything heavy."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import LOOP, make_run

from star_jax.cli.run import parse_run
from star_jax.config import DataConfig, LabelsConfig
from star_jax.errors import ConfigError
from star_jax.runs.waiting_runs import find_waiting


def finish_round(run, number, ids):
    folder = run / "rounds" / f"{number:03d}"
    folder.mkdir()
    (folder / "queried.jsonl").write_text("".join(json.dumps({"id": name, "response": None}) + "\n" for name in ids))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"round": number, "labelled": 2, "accuracy": 0.5 + number / 10}) + "\n")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "out"
    for strategy in ("random", "star"):
        for seed in (0, 3):
            make_run(folder, strategy, seed)
    (folder / "labels.csv").write_text("id,prompt,response\n")
    return folder


def test_one_command_goes_on_with_all_of_them(root):
    runs = find_waiting(str(root))
    assert (runs.strategies, runs.whole, runs.table) == (["random", "star"], True, root / "labels.csv")
    command = runs.command()
    assert command[:3] == [sys.executable, "-m", "star_jax.run"]
    config, _ = parse_run(command[3:])
    assert (config.strategies, config.seeds, config.output_dir) == (("random", "star"), (0, 3), str(root))
    assert config.loop == LOOP


def test_a_run_alone_goes_on_alone(root, monkeypatch):
    runs = find_waiting(str(root / "star" / "seed-3"))
    config, _ = parse_run(runs.command()[3:])
    assert (runs.folder, runs.whole, config.strategies, config.seeds) == (root, False, ("star",), (3,))
    monkeypatch.chdir(root / "star" / "seed-3")
    assert find_waiting(".") == runs


def test_finished_runs_are_left_out(root):
    for seed in (0, 3):
        (root / "star" / f"seed-{seed}" / "summary.json").write_text("{}")
    runs = find_waiting(str(root))
    assert (runs.strategies, runs.finished()) == (["random"], False)
    for seed in (0, 3):
        (root / "random" / f"seed-{seed}" / "summary.json").write_text("{}")
    assert runs.finished()


def test_what_trainings_have_used_and_how_far_they_are(root):
    runs = find_waiting(str(root))
    assert (runs.used(), runs.rounds(), runs.accuracy()) == (frozenset(), (0, 3), None)
    finish_round(root / "star" / "seed-0", 0, "ab")
    finish_round(root / "star" / "seed-0", 1, "c")
    assert (runs.used(), runs.rounds(), runs.accuracy()) == (frozenset("abc"), (0, 3), 0.6)
    for run in ("random/seed-0", "random/seed-3", "star/seed-3"):
        finish_round(root / run, 0, "d")
    assert (runs.used(), runs.rounds()) == (frozenset("abcd"), (1, 3))


def test_busy_while_a_process_has_the_lock_of_one(root):
    runs = find_waiting(str(root))
    assert not runs.busy()
    with (root / "star" / "seed-0" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert runs.busy()
    assert not runs.busy()


def refusal(place):
    with pytest.raises(ConfigError) as error:
        find_waiting(str(place))
    return str(error.value)


def test_what_there_is_nothing_to_label_in_is_told_in_a_sentence(root, tmp_path):
    assert "there is no folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no run" in refusal(tmp_path / "empty")
    (root / "labels.csv").unlink()
    assert "there is no labels.csv yet; run star-jax run until it says" in refusal(root)
    make_run(tmp_path / "oracle", "star", 0, annotator="oracle")
    assert "annotator is oracle, which answers by itself" in refusal(tmp_path / "oracle")
    (tmp_path / "oracle" / "star" / "seed-0" / "summary.json").write_text("{}")
    assert "is finished; there is nothing to label" in refusal(tmp_path / "oracle")


def test_runs_of_different_settings_are_labelled_for_one_after_the_other(root):
    make_run(root, "bald", 0, annotator="csv")
    assert "differ in annotator; name one of the two" in refusal(root)
    assert find_waiting(str(root / "bald" / "seed-0")).config.annotator == "csv"


def test_no_run_is_begun_that_nobody_has_asked_for(root):
    make_run(root, "star", 7)
    said = refusal(root)
    assert f"would begin {root / 'random' / 'seed-7'}; name one run, such as {root / 'random' / 'seed-0'}" in said
    assert find_waiting(str(root / "star" / "seed-7")).strategies == ["star"]
    make_run(root, "random", 7)  # a finished one is not begun again
    (root / "random" / "seed-7" / "summary.json").write_text("{}")
    assert len(find_waiting(str(root)).runs) == 5


def test_plugins_of_all_runs_are_named_and_what_skips_must_be_the_same(tmp_path):
    make_run(tmp_path, "one", 0, plugins=("mine.py",))
    make_run(tmp_path, "other", 0, plugins=("yours.py", "mine.py"))
    (tmp_path / "labels.csv").write_text("id,prompt,response\n")
    command = find_waiting(str(tmp_path)).command()
    assert command[command.index("--plugins") + 1] == "mine.py,yours.py"
    make_run(tmp_path, "third", 0, labels=LabelsConfig(skip="n/a"))
    assert "differ in labels.skip; name one of the two" in refusal(tmp_path)


def test_another_working_folder_than_that_of_the_run_is_told_of(tmp_path, monkeypatch):
    make_run(tmp_path / "out", "star", 0, data=DataConfig(task="generic", train="pool.csv", test="owner/name"))
    (tmp_path / "out" / "labels.csv").write_text("id,prompt,response\n")
    monkeypatch.chdir(tmp_path / "out")
    assert "data.train of the run is pool.csv, and there is no such file; call star-jax label in the" in refusal(
        tmp_path / "out"
    )
    (tmp_path / "pool.csv").write_text("question\n")
    monkeypatch.chdir(tmp_path)
    assert find_waiting("out").folder == Path("out")


def test_looking_on_takes_neither_jax_nor_a_device():
    program = (
        "import sys, star_jax.cli.label, star_jax.annotators.web.server\n"
        "print([name for name in ('jax', 'transformers', 'datasets') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert answer.stdout == "[]\n"
