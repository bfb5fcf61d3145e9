"""`python -m star_jax.score` as a person uses it, on the shipped model."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from random_models import random_adapter

from star_jax.checkpoints.hub import load_tokenizer, resolve_folder
from star_jax.checkpoints.huggingface import load_model
from star_jax.checkpoints.peft import save_adapter
from star_jax.cli import score
from star_jax.cli.guard import guarded_main

PROMPTS = ["rev 3 1 4 =", "max 3 9 4 1 =", "desc 2 7 5 =", "sort 9 1 5 5 2 ="]


@pytest.fixture
def files(tmp_path):
    rows = [{"id": f"q{i}", "question": text} for i, text in enumerate(PROMPTS)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder with an adapter that changes answers."""
    folder = tmp_path_factory.mktemp("adapter")
    config = load_model("embedded:skills").config
    noisy = random_adapter(np.random.default_rng(1), config, targets=("q_proj", "down_proj"), rank=4)
    save_adapter(noisy, folder, base_model="embedded:skills", dropout=0.2)
    return str(folder)


def scored(files, *extra):
    out = files / "out.jsonl"
    flags = ("--model", "embedded:skills", "--data", str(files / "pool.jsonl"), "--task", "skills", "--out", str(out))
    assert score.main([*flags, "--max-response-tokens", "6", *extra]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_unlabelled_prompts_are_scored_on_the_models_own_answer(files):
    rows = scored(files)
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    for row in rows:
        assert "bald" not in row
        for name in ("sequence_nll", "token_entropy"):
            assert row[f"{name}_mean"] == pytest.approx(row[name] / row["response_tokens"], rel=1e-5)
            assert row[f"{name}_mean"] <= row[f"{name}_max"] + 1e-6
            assert all(math.isfinite(row[f"{name}{suffix}"]) for suffix in ("", "_mean", "_max"))
    assert rows[0]["response"] == "4 1 3"


def test_monte_carlo_samples_differ_by_seed_and_repeat_by_seed(files, adapter):
    flags = ("--adapter", adapter, "--mc-samples", "4")
    first, again, other = scored(files, *flags), scored(files, *flags), scored(files, *flags, "--seed", "1")
    assert first == again
    assert first != other
    assert all(row["bald"] > 0 and row["jensen_gap"] > 0 for row in first)
    plain = scored(files, "--adapter", adapter)
    assert [row["response"] for row in plain] == [row["response"] for row in first]


def test_a_trace_is_written_beside_the_scores(files):
    assert scored(files, "--profile", str(files / "trace")) == scored(files)
    assert list((files / "trace").rglob("*.xplane.pb"))


def test_scores_are_written_where_the_trace_cannot_be(files, monkeypatch, capfd):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    rows = scored(files, "--profile", str(files / "trace"))
    assert "No space left on device" in capfd.readouterr().err
    assert rows == scored(files)


def test_rate_zero_and_missing_pieces_are_one_sentence(files, capfd):
    config = load_model("embedded:skills").config
    still = random_adapter(np.random.default_rng(1), config, targets=("q_proj",), rank=2)
    save_adapter(still, files / "still", base_model="embedded:skills", dropout=0.0)
    base = ["--model", "embedded:skills", "--data", str(files / "pool.jsonl"), "--task", "skills"]
    for extra, sentence in (
        (["--adapter", str(files / "still"), "--mc-samples", "2"], "dropout"),
        (["--answers", "candidates"], "no closed answer set"),
        (["--answers", "reference"], "no response"),
        (["--out", str(files / "nowhere" / "x.jsonl")], "nowhere"),
        (["--profile", str(files / "pool.jsonl" / "trace")], "--profile is"),
        (["--adapter", str(files / "missing")], "adapter_config.json"),
    ):
        assert guarded_main(score.main, [*base, *extra]) == 2
        error = capfd.readouterr().err
        assert sentence in error
        assert "Traceback" not in error


def test_candidates_are_a_distribution_over_the_closed_set(tmp_path):
    """Boolq's two answers under a random model: entropy at most log 2, one decision a prompt."""
    folder = Path(__file__).parents[1] / "golden" / "llama" / "model"
    rows = [{"question": f"is {i} even?\n"} for i in range(3)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.jsonl"
    flags = ["--model", str(folder), "--data", str(tmp_path / "pool.jsonl"), "--task", "boolq", "--out", str(out)]
    assert score.main([*flags, "--answers", "candidates"]) == 0
    for row in map(json.loads, out.read_text().splitlines()):
        assert 0 < row["token_entropy"] <= math.log(2) + 1e-6
        assert row["response_tokens"] == 1
        best = math.exp(-row["sequence_nll"])
        assert best >= 0.5 - 1e-6
        binary = -(best * math.log(best) + (1 - best) * math.log1p(-best))
        assert row["token_entropy"] == pytest.approx(binary, rel=1e-3)
        assert np.isclose(row["margin"], 1 - (2 * best - 1), atol=1e-5)


def model_copy(tmp_path, **changes):
    """The shipped model, with other entries in its config.json."""
    folder = tmp_path / "model"
    shutil.copytree(resolve_folder("embedded:skills"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("answers", ["generated", "reference"])
def test_more_tokens_than_the_model_reads_are_warned_of(files, caplog, answers):
    """The longest prompt has 7 tokens; its answer 6 at most, or 5 and the end as it stands in the file."""
    rows = [{"question": "rev 3 1 4 1 5 =", "answer": "5 1 4 1 3"}, {"question": "max 3 9 =", "answer": "9"}]
    (files / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for most, warned in ((13, False), (12, True)):
        caplog.clear()
        folder = model_copy(files / str(most), max_position_embeddings=most)
        scored(files, "--model", str(folder), "--data", str(files / "gold.jsonl"), "--answers", answers)
        said = "the longest example may take 13 tokens (prompt and response), and the model reads 12"
        assert [said in record.getMessage() for record in caplog.records] == [True] * warned
        assert all(record.name == "star_jax.score" for record in caplog.records)


def test_generation_ends_at_the_end_tokens_of_the_model(files):
    tokenizer = load_tokenizer("embedded:skills")
    folder = model_copy(files, eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("1")])
    rows = scored(files, "--model", str(folder))
    assert (rows[0]["response"], rows[0]["response_tokens"]) == ("4", 2)


@pytest.mark.parametrize("too_long", ["error", "drop", "truncate-left"])
def test_answers_of_a_closed_set_are_not_cut(files, capfd, too_long):
    flags = ["--model", "embedded:skills", "--data", str(files / "pool.jsonl"), "--task", "generic", "--answers"]
    flags += ["candidates", "--format.answers", "1 2 3 4,1 2 3 5", "--format.prompt", "{{ question }} "]
    assert guarded_main(score.main, [*flags, "--max-response-tokens", "4", "--too-long", too_long]) == 2
    error = capfd.readouterr().err
    assert "the answer ' 1 2 3 4' has 5 tokens after the prompt of example q0, over the limit of 4; raise" in error


def test_a_tokenizer_of_another_model_is_refused(files, capfd):
    folder = model_copy(files)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["="] = 10_000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    flags = ["--model", str(folder), "--data", str(files / "pool.jsonl"), "--task", "skills"]
    assert guarded_main(score.main, flags) == 2
    error = capfd.readouterr().err
    assert "example q0: the tokenizer's token '=' has the number 10000 and the model's vocab_size is" in error
