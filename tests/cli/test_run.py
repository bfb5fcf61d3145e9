"""The command as a person uses it: whole runs on a tiny pool of the embedded benchmark."""

import json
import re
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache
from safetensors.numpy import load_file
from seeds import seed_of
from shapes import have_one_shape

from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import resolve_folder
from star_jax.cli import run
from star_jax.cli.guard import guarded_main
from star_jax.cli.run import parse_run
from star_jax.data.tasks import boolq
from star_jax.environment import configure_jax
from star_jax.errors import LabelsNeeded
from star_jax.experiment.runner import run_experiment
from star_jax.runs.run_folder import RunFolder
from star_jax.tracking.console import Progress
from star_jax.tracking.timing import PHASES

GOLDEN_MODEL = Path(__file__).parents[1] / "golden" / "llama" / "model"
CONFIG = """
model: {path: embedded:skills}
lora: {rank: 4, alpha: 8, dropout: 0.1, training_dropout: tied, targets: [q_proj, v_proj]}
training: {learning_rate: 5.0e-3, epochs: 2, batch_size: 16, replay: FEW_ROWS, replay_rows: 4}
scoring: {mc_samples: 2, batch_size: 64}
loop: {initial_labels: 20, labels_per_round: 10, rounds: 3}
data: {task: skills, max_prompt_tokens: 9, max_response_tokens: 6, test_limit: 48}
generation: {batch_size: 64}
"""


def write_rows(path, examples):
    rows = [{"id": e.id, "question": e.prompt.text, "answer": e.response} for e in examples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def workplace(request, tmp_path_factory):
    """A config, a pool, a test file and a few replay rows. Programs are kept, as they are for a person.

    Kept in a folder of their own, from which the processes that are started here read them.
    """
    folder = tmp_path_factory.mktemp("run")
    names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
    also = ("jax_default_matmul_precision", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in (*names, *also)}
    for name, value in zip(names, (True, str(folder / "programs")), strict=True):
        jax.config.update(name, value)
    patch = pytest.MonkeyPatch()
    patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
    patch.setenv("JAX_NUM_CPU_DEVICES", str(jax.device_count()))
    configure_jax()
    compilation_cache.reset_cache()  # Whether there is one is looked up once, for the first program.
    (folder / "tiny.yaml").write_text(CONFIG.replace("FEW_ROWS", str(folder / "replay.jsonl")))
    seed = seed_of(request)
    write_rows(folder / "pool.jsonl", skills.pool_examples("R1", seed, 120))
    write_rows(folder / "test.jsonl", skills.test_examples())
    replay = (resolve_folder("embedded:skills") / "replay.jsonl").read_text().splitlines(keepends=True)
    (folder / "replay.jsonl").write_text("".join(replay[::60]))
    yield folder
    patch.undo()
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def flags(folder, output, *extra, pool="pool.jsonl"):
    return [
        *("--config", str(folder / "tiny.yaml"), "--output-dir", str(output)),
        *("--data.train", str(folder / pool), "--data.test", str(folder / "test.jsonl"), *extra),
    ]


def run_unreported(argv):
    """What the command does but for its report, which takes longer to draw than a run like these."""
    run_experiment(parse_run(argv)[0], Progress())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def picks(run_folder):
    return [path.read_bytes() for path in sorted(run_folder.glob("rounds/*/queried.jsonl"))]


def picked_ids(run_folder):
    return [[row["id"] for row in lines(path)] for path in sorted(run_folder.glob("rounds/*/queried.jsonl"))]


@pytest.fixture(scope="module")
def finished(workplace):
    """One whole experiment, star and random, left alone."""
    output = workplace / "out"
    assert run.main(flags(workplace, output, "--strategies", "star,random")) == 0
    return output


@pytest.mark.parametrize("strategy", ["star", "random"])
def test_run_folder_is_complete_and_the_budget_exact(finished, strategy):
    folder = finished / strategy / "seed-0"
    for name in ("config.yaml", "environment.json", "adapter/adapter_model.safetensors", "summary.json"):
        assert (folder / name).is_file()
    rounds = picked_ids(folder)
    assert [len(ids) for ids in rounds] == [20, 10, 10]
    assert len(set(chain.from_iterable(rounds))) == 40
    metrics = lines(folder / "metrics.jsonl")
    assert [row["labelled"] for row in metrics] == [20, 30, 40]
    for row in metrics:
        assert {"round", "accuracy", "nll", "brier", "ece", "auroc", "lora_b_norm"} <= set(row)
        assert row["lora_b_norm"] > 0
        assert row["train_seconds"] > 0
        assert row["evaluate_seconds"] > 0
        assert {f"{name}_seconds" for name in PHASES} <= set(row)
    seconds = json.loads((folder / "summary.json").read_text())["seconds"]
    assert seconds["total"] == pytest.approx(sum(seconds[name] for name in PHASES), abs=0.01)
    for name in PHASES:
        assert seconds[name] >= sum(row[f"{name}_seconds"] for row in metrics) - 0.01
    for number, row in enumerate(metrics):
        predictions = lines(folder / "rounds" / f"{number:03d}" / "predictions.jsonl")
        assert len(predictions) == 48
        assert np.mean([p["correct"] for p in predictions]) == pytest.approx(row["accuracy"])
        assert {"id", "prediction", "reference", "correct", "confidence"} <= set(predictions[0])
    assert (finished / "report.html").is_file()
    assert (finished / "learning_curve.png").is_file()


def test_the_first_run_compiles_and_its_seconds_are_told_in_a_line(workplace, finished, capfd):
    seconds = {
        name: json.loads((finished / name / "seed-0" / "summary.json").read_text()) for name in ("star", "random")
    }
    assert seconds["star"]["seconds"]["compile"] > 0
    assert run.main(flags(workplace, finished, "--strategies", "star,random")) == 0
    table = capfd.readouterr().out
    for name, summary in seconds.items():
        assert re.search(rf"{name} seed 0\s+{summary['seconds']['total']:,.1f}", table)
    assert f"{seconds['random']['seconds']['train']:,.1f}" in (finished / "report.html").read_text()


def test_a_trace_is_no_setting(workplace, finished, tmp_path):
    """The finished run is found again with `--profile`; nothing in its folder names it."""
    folder = finished / "random" / "seed-0"
    assert run.main(flags(workplace, finished, "--strategies", "random", "--profile", str(tmp_path / "trace"))) == 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    assert "profile" not in (folder / "config.yaml").read_text()


def test_a_trace_that_cannot_be_written_is_one_sentence_before_anything_is(workplace, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    argv = flags(workplace, tmp_path / "out", "--profile", str(tmp_path / "file" / "trace"))
    assert guarded_main(run.main, argv) == 2
    error = capfd.readouterr().err
    assert "--profile is" in error
    assert "cannot be made" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_strategies_start_from_the_same_labels_and_then_differ(finished):
    star, random = (picked_ids(finished / name / "seed-0") for name in ("star", "random"))
    assert star[0] == random[0]
    assert star[1] != random[1]


def test_star_picks_by_descending_score(finished):
    for row_file in sorted((finished / "star" / "seed-0").glob("rounds/*/queried.jsonl"))[1:]:
        rows = lines(row_file)
        scores = [row["score"] for row in rows]
        assert scores == sorted(scores, reverse=True)
        assert [row["rank"] for row in rows] == list(range(len(rows)))
        assert all(row["base_uncertainty"] >= 0 and row["full_uncertainty"] >= 0 for row in rows)


def test_a_run_goes_on_from_an_adapter(workplace, finished, capfd):
    """With a rate of next to nothing, training ends where it starts; the adapter is part of the base model."""
    start, output = finished / "random" / "seed-0", workplace / "onward"
    argv = flags(workplace, output, "--model.adapter", str(start / "adapter"), "--training.learning-rate", "1e-12")
    run_unreported([*argv, "--strategies", "base_only", "--loop.rounds", "2"])
    assert "starts from the adapter" in capfd.readouterr().err
    ours = output / "base_only" / "seed-0"
    before, after = (load_file(place / "adapter" / "adapter_model.safetensors") for place in (start, ours))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-6)
    assert json.loads((ours / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert "`adapter`" in (ours / "adapter" / "README.md").read_text()
    theirs = lines(start / "rounds" / "002" / "predictions.jsonl")
    for then, now in zip(theirs, lines(ours / "rounds" / "001" / "predictions.jsonl"), strict=True):
        assert now["base_uncertainty"] == pytest.approx(then["uncertainty"], rel=1e-4, abs=1e-6)
        assert now["uncertainty"] == pytest.approx(then["uncertainty"], rel=1e-3, abs=1e-5)
    # The adapter does change what the model thinks, of nearly all prompts.
    moved = [row["base_uncertainty"] != pytest.approx(row["uncertainty"], rel=1e-3) for row in theirs]
    assert sum(moved) > 0.9 * len(moved)
    picked = lines(ours / "rounds" / "001" / "queried.jsonl")
    assert all(row["base_uncertainty"] > 0 for row in picked)


@pytest.fixture(scope="module")
def permuted(workplace, finished):
    """The pool with the responses that star never bought permuted among themselves."""
    bought = set(chain.from_iterable(picked_ids(finished / "star" / "seed-0")))
    rows = lines(workplace / "pool.jsonl")
    hidden = [i for i, row in enumerate(rows) if row["id"] not in bought]
    responses = [rows[i]["answer"] for i in hidden]
    order = np.roll(np.arange(len(hidden)), 7)
    for place, source in zip(hidden, order, strict=True):
        rows[place] = {**rows[place], "answer": responses[source]}
    changed = sum(rows[i]["answer"] != responses[k] for k, i in enumerate(hidden))
    assert changed > len(hidden) / 2
    (workplace / "permuted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "permuted.jsonl"


def test_permuting_hidden_responses_leaves_all_picks_bit_identical(workplace, finished, permuted):
    output = workplace / "permuted"
    run_unreported(flags(workplace, output, "--strategies", "star", pool=permuted))
    assert picks(output / "star" / "seed-0") == picks(finished / "star" / "seed-0")


def test_reference_answers_do_depend_on_hidden_responses(workplace, permuted):
    """The leak test can fail: with gold scoring, the same permutation changes the picks."""
    for pool in ("pool.jsonl", permuted):
        extra = ("--strategies", "pe", "--scoring.answers", "reference")
        run_unreported(flags(workplace, workplace / f"gold-{pool}", *extra, pool=pool))
    first, second = (picked_ids(workplace / f"gold-{pool}" / "pe" / "seed-0") for pool in ("pool.jsonl", permuted))
    assert first != second


FILES_OF_TWO_ROUNDS = 15
"""Files and folders that come into place in the second and third round, up to the third row of metrics."""

DYING = """
import os, pathlib, signal, sys
from star_jax.cli import run

left, first_state, replace = int(sys.argv[1]), pathlib.Path(sys.argv[2]), os.replace
counting = False

def dying(source, target):
    global left, counting
    counting = counting or first_state.is_dir()
    left -= counting
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
sys.exit(run.main(sys.argv[3:]))
"""


def test_killed_run_continues_bit_for_bit(workplace, finished, rng, capfd):
    """Killed at any moment: before a file of the second or third round, drawn by chance, comes into place.

    It goes on in another process than the one that was killed: this one.
    """
    output = workplace / "killed"
    folder = output / "star" / "seed-0"
    command = flags(workplace, output, "--strategies", "star")
    moment = str(rng.integers(FILES_OF_TWO_ROUNDS))
    killed = subprocess.run([sys.executable, "-c", DYING, moment, str(folder / "state" / "001"), *command], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    run_unreported(command)
    assert "continues after round" in capfd.readouterr().err
    alone = finished / "star" / "seed-0"
    assert picks(folder) == picks(alone)
    weights = "adapter/adapter_model.safetensors"
    assert (folder / weights).read_bytes() == (alone / weights).read_bytes()
    for ours, theirs in zip(lines(folder / "metrics.jsonl"), lines(alone / "metrics.jsonl"), strict=True):
        untimed = {key: value for key, value in ours.items() if not key.endswith("_seconds")}
        assert untimed == {key: value for key, value in theirs.items() if not key.endswith("_seconds")}


def test_finished_run_says_so_and_leaves_everything_alone(workplace, finished, capfd):
    before = {path: path.stat().st_mtime_ns for path in (finished / "star").rglob("*.jsonl")}
    assert run.main(flags(workplace, finished, "--strategies", "star")) == 0
    assert "finished already" in capfd.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "star").rglob("*.jsonl")}


def test_changed_config_is_refused_by_key(workplace, finished, capfd):
    argv = flags(workplace, finished, "--strategies", "star", "--loop.rounds", "4")
    assert guarded_main(run.main, argv) == 2
    error = capfd.readouterr().err
    assert "loop.rounds: 3 in the folder, 4 now" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--loop.rounds", "40"), "410 labels"),
        (("--strategies", "nonsense"), "nonsense"),
        (("--lora.dropout", "0.0"), "lora.dropout"),
        (("--scoring.answers", "candidates"), "no closed answer set"),
        (("--model.path", "missing/folder/here"), "missing/folder/here"),
        (("--data.train", "missing.jsonl"), "missing.jsonl"),
        (("--strategies", "bald", "--scoring.mc-samples", "1"), "scoring.mc_samples"),
        (("--data.max-prompt-tokens", "100"), "max_position_embeddings"),
        (("--model.path", str(GOLDEN_MODEL), "--training.replay", "embedded:skills"), "training.replay"),
        (("--data.max-prompt-tokens", "5"), "the limit of 5"),
    ],
)
def test_what_the_user_can_put_right_is_one_sentence_and_exit_code_2(workplace, tmp_path, capfd, extra, sentence):
    assert guarded_main(run.main, flags(workplace, tmp_path / "out", "--strategies", "star", *extra)) == 2
    error = capfd.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.jsonl"))


def test_other_data_is_refused(workplace, finished, capfd, tmp_path):
    rows = lines(workplace / "pool.jsonl")
    rows[0]["question"], rows[1]["question"] = rows[1]["question"], rows[0]["question"]
    before = (workplace / "pool.jsonl").read_text()
    try:
        (workplace / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert guarded_main(run.main, flags(workplace, finished, "--strategies", "star")) == 2
    finally:
        (workplace / "pool.jsonl").write_text(before)
    assert "made with other data" in capfd.readouterr().err


def test_a_config_may_change_before_a_round_is_finished(workplace, tmp_path):
    folder = RunFolder.open(tmp_path, "random", 0, {"loop": {"rounds": 9}}, "cpu")
    folder.close()
    # And once with all the replay rows that ship with the model, which take their time to tokenise.
    extra = ("--strategies", "random", "--loop.rounds", "1", "--training.replay", "embedded:skills")
    run_unreported(flags(workplace, tmp_path, *extra))
    assert len(lines(tmp_path / "random" / "seed-0" / "metrics.jsonl")) == 1


def boolq_rows(folder, name, count, start=0):
    """Rows in the released layout; the text says nothing of the answer."""
    ask = f"{boolq.INSTRUCTION}is {{}} a number?{boolq.ANSWER_FORMAT}"
    answers = ("the correct answer is true", "the correct answer is false")
    rows = [{"question": ask.format(i), "answer": answers[i * 7 % 3 % 2]} for i in range(start, start + count)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.mark.usefixtures("workplace")
def test_shipped_boolq_config_runs_and_its_picks_know_no_hidden_label(tmp_path, monkeypatch):
    """configs/boolq.yaml scores the closed answer set; flipping every unbought answer must change no pick."""
    have_one_shape(monkeypatch)
    rows = boolq_rows(tmp_path, "train.jsonl", 40)
    boolq_rows(tmp_path, "test.jsonl", 12, start=100)

    def argv(output):
        return [
            *("--config", str(Path(__file__).parents[2] / "configs" / "boolq.yaml"), "--model.path", str(GOLDEN_MODEL)),
            *("--data.train", str(tmp_path / "train.jsonl"), "--data.test", str(tmp_path / "test.jsonl")),
            *("--loop.initial-labels", "8", "--loop.labels-per-round", "4", "--loop.rounds", "2"),
            *("--data.max-response-tokens", "24", "--lora.rank", "2", "--strategies", "star"),
            *("--output-dir", str(tmp_path / output), "--model.dtype", "float32", "--training.epochs", "1"),
        ]

    run_unreported(argv("first"))
    bought = set(chain.from_iterable(picked_ids(tmp_path / "first" / "star" / "seed-0")))
    assert len(bought) == 12
    flip = {"the correct answer is true": "the correct answer is false"}
    flip |= {value: key for key, value in flip.items()}
    for number, row in enumerate(rows, start=1):
        if f"train-{number:06d}" not in bought:
            row["answer"] = flip[row["answer"]]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_unreported(argv("second"))
    assert picks(tmp_path / "second" / "star" / "seed-0") == picks(tmp_path / "first" / "star" / "seed-0")


def test_stored_config_repeats_the_run(finished, tmp_path):
    stored = finished / "star" / "seed-0" / "config.yaml"
    assert yaml.safe_load(stored.read_text())["strategies"] == ["star"]
    run_unreported(["--config", str(stored), "--output-dir", str(tmp_path)])
    assert picks(tmp_path / "star" / "seed-0") == picks(finished / "star" / "seed-0")


def test_package_is_what_is_tested():
    assert Path(run.__file__).parents[2] == Path(__file__).parents[2]


@pytest.mark.parametrize("labels", [True, False])
def test_while_labels_are_waited_for_there_is_a_report_so_far(tmp_path, monkeypatch, capsys, labels):
    def asks(*_):
        raise LabelsNeeded("somebody has to label")

    monkeypatch.setattr("star_jax.experiment.runner.run_experiment", asks)
    (tmp_path / "star" / "seed-0").mkdir(parents=True)
    (tmp_path / "star" / "seed-0" / "choice-000.npz").touch()
    if labels:  # another annotator's requests lie elsewhere, and there is nothing to report
        (tmp_path / "labels.csv").write_text("id,prompt,response\na,one,\n")
    assert guarded_main(run.main, ["--output-dir", str(tmp_path)]) == 3
    said = capsys.readouterr()
    assert said.out == "star_jax: somebody has to label\n"
    assert (tmp_path / "report.html").exists() == (f"report so far: {tmp_path / 'report.html'}" in said.err) == labels
