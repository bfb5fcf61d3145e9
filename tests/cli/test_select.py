"""`star-jax select` as a person uses it, on the shipped model."""

import csv
import json

import pytest

from star_jax.benchmarks.skills import generator as skills
from star_jax.cli import main
from star_jax.cli.guard import guarded_main
from star_jax.cli.run import main as run
from star_jax.cli.select_flags import SelectConfig, parse_select
from star_jax.config import AcquisitionConfig, LoraConfig
from star_jax.data.cells import PICKS
from star_jax.registry import STRATEGIES

COLUMNS = ["id", "prompt", "response", "rank", "score"]
REQUIRED = ["--model", "m", "--data", "d.jsonl", "--task", "skills", "--count", "5"]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Prompts without labels, their lines in another order than their ids."""
    folder = tmp_path_factory.mktemp("pool")
    rows = [{"id": one.id, "question": one.prompt.text} for one in skills.pool_examples("R1", 3, 24)]
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::-1]))
    return folder / "pool.jsonl"


def selected(pool, out, *extra, count=5, code=0):
    argv = ["--model", "embedded:skills", "--data", pool, "--task", "skills", "--count", count, "--out", out]
    argv = [*map(str, argv), "--max-response-tokens", "6", "--max-prompt-tokens", "12", *extra]
    assert main.main(["select", *argv]) == code
    if code:
        return None
    if out.suffix == ".csv":
        with out.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["typiclust", "base_only", "badge", "random"])
def test_a_budget_is_picked_at_once(pool, tmp_path, capsys, strategy):
    rows = selected(pool, tmp_path / "picks.jsonl", "--strategy", strategy)
    assert [row["rank"] for row in rows] == list(range(5))
    texts = {row["id"]: row["question"] for row in map(json.loads, pool.read_text().splitlines())}
    assert len({row["id"] for row in rows}) == 5
    for row in rows:
        assert list(row) == COLUMNS == list(PICKS)
        assert row["prompt"] == texts[row["id"]]
        assert row["response"] is None
        assert (row["score"] is None) == (strategy == "random")
    assert f"5 examples picked by {strategy}, in {tmp_path / 'picks.jsonl'}" in capsys.readouterr().out


def test_they_are_the_first_labels_of_a_run(pool, tmp_path):
    """With the same seed, whatever the order of the file; and the table is the one that people fill in."""
    picks = selected(pool, tmp_path / "picks.csv", "--strategy", "base_only", "--seed", "3")
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "desc 2 7 5 =", "answer": "7 5 2"}) + "\n")
    flags = {
        "data.task": "skills",
        "data.train": pool,
        "data.test": tmp_path / "test.jsonl",
        "data.max-prompt-tokens": 12,
        "data.max-response-tokens": 6,
        "training.replay": "none",
        "training.replay-rows": 0,
        "strategies": "random",
        "seeds": 3,
        "loop.initial": "base_uncertainty",
        "loop.initial-labels": 5,
        "loop.rounds": 1,
        "training.epochs": 1,
        "lora.rank": 2,
        "lora.targets": "v_proj",
        "output-dir": tmp_path / "out",
    }
    argv = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert guarded_main(run, argv) == 3
    table = tmp_path / "out" / "labels.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        asked = list(csv.DictReader(file))
    assert [row["id"] for row in asked] == [row["id"] for row in picks]
    # The filled table in the place of the run's own.
    for row in picks:
        row["response"] = skills.solve(row["prompt"])
    with table.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(picks)
    assert guarded_main(run, argv) == 0
    queried = (tmp_path / "out" / "random" / "seed-3" / "rounds" / "000" / "queried.jsonl").read_text()
    rows = [json.loads(line) for line in queried.splitlines()]
    assert [row["id"] for row in rows] == [row["id"] for row in picks]
    assert [row["score"] for row in rows] == pytest.approx([float(row["score"]) for row in picks], rel=1e-5)
    assert "picked by base_uncertainty" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (["--strategy", "star"], "--strategy star averages over dropout samples of an adapter"),
        (["--strategy", "typiclus"], "--strategy names typiclus, which does not exist (did you mean typiclust?)"),
        (["--count", "25"], "has 24 prompts; lower it"),
        (["--count", "0"], "--count is 0; it must be at least 1"),
        (["--answers", "candidates"], "task skills has no closed answer set"),
        (["--out", "picks.txt"], "its ending must be .csv or .jsonl"),
        (["--max-prompt-tokens", "1", "--too-long", "drop"], "--max-prompt-tokens"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_mistakes_are_one_sentence(pool, tmp_path, capsys, extra, said):
    selected(pool, tmp_path / "picks.csv", *extra, code=2)
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("star_jax: error: ")
    assert len(error.splitlines()) == 1
    assert said in error
    assert not (tmp_path / "picks.csv").exists()


def test_the_pool_is_not_written_over(pool, capsys):
    before = pool.read_text()
    selected(pool, pool, code=2)
    assert "the file of --data, which would be lost" in capsys.readouterr().err
    assert pool.read_text() == before


def test_flags_and_a_file(tmp_path):
    assert parse_select(REQUIRED) == SelectConfig("m", "d.jsonl", "skills", count=5)
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "model: {path: m}\ndata: {train: d.jsonl, task: skills, max_prompt_tokens: 9}\nscoring: {answers: reference}\n"
        "acquisition: {reduction: mean}\nlora: {rank: 3}\n"
    )
    assert parse_select(["--config", str(file), "--count", "7", "--strategy", "k_center"]) == SelectConfig(
        "m",
        "d.jsonl",
        "skills",
        count=7,
        strategy="k_center",
        max_prompt_tokens=9,
        max_response_tokens=256,
        acquisition=AcquisitionConfig(reduction="mean"),
        lora=LoraConfig(rank=3),
    )
    with pytest.raises(SystemExit):
        parse_select(REQUIRED[:-2])


def test_help_names_every_strategy(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_select(["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert all(name in shown for name in STRATEGIES.names())
