"""A whole run whose labels come from an endpoint: it stops at its limit, goes on when that is raised, keeps no key."""

import csv
import json

import pytest
from fake_endpoint import FakeEndpoint
from shapes import have_one_shape

from star_jax.annotators.llm.calls import CALLS_FILE
from star_jax.benchmarks.skills import generator as skills
from star_jax.cli import run
from star_jax.cli.guard import guarded_main
from star_jax.report import page

KEY = "sk-test-0123456789abcdef"

SETTINGS = """
output_dir: {out}
strategies: [random]
annotator: llm
model: {{path: embedded:skills}}
lora: {{rank: 2, targets: [v_proj]}}
training: {{epochs: 1, replay: null, replay_rows: 0}}
loop: {{initial_labels: 6, labels_per_round: 3, rounds: 2}}
data: {{task: generic, train: {pool}, test: {test}, max_prompt_tokens: 9, max_response_tokens: 6}}
format: {{prompt: "{{{{ question }}}} ", response: "{{{{ label }}}}"}}
llm: {{model: fake, base_url: "{url}", input_price: 2, output_price: 10, spending_limit: {limit}, guidelines: {guide}}}
"""


@pytest.fixture
def endpoint():
    opened = FakeEndpoint(lambda body: json.dumps({"answer": skills.solve(body["messages"][-1]["content"].strip())}))
    yield opened
    opened.close()


def write(path, examples, labelled):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", *(["label"] if labelled else [])])
        writer.writerows([one.prompt.text, *([one.response] if labelled else [])] for one in examples)


def test_a_run_stops_at_the_limit_goes_on_when_it_is_raised_and_keeps_no_key(
    endpoint, tmp_path, seed, monkeypatch, capfd
):
    have_one_shape(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(page, "build_report", lambda folder: tmp_path / "report.html")
    write(tmp_path / "pool.csv", skills.pool_examples("R1", seed, 20), labelled=False)
    write(tmp_path / "test.csv", skills.test_examples()[::60], labelled=True)
    (tmp_path / "guide.md").write_text("Sort in *descending* order where it says desc.")
    cost, most = (100 * 2 + 10 * 10) / 1e6, 512 * 10 / 1e6
    places = {"out": tmp_path / "out", "pool": tmp_path / "pool.csv", "test": tmp_path / "test.csv"}
    text = SETTINGS.format(**places, url=endpoint.url, limit=3.5 * cost + most, guide=tmp_path / "guide.md")
    config = tmp_path / "config.yaml"
    config.write_text(text)
    argv = ["--config", str(config)]
    assert guarded_main(run.main, argv) == 3
    assert "the spending limit llm.spending_limit" in capfd.readouterr().out
    assert 0 < len(endpoint.seen) < 6
    assert guarded_main(run.main, [*argv, "--llm.spending-limit", "1"]) == 0
    assert len(endpoint.seen) == 9
    assert "descending" in endpoint.seen[-1]["messages"][0]["content"]
    folder = tmp_path / "out" / "random" / "seed-0"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["label_cost"] for row in metrics] == [pytest.approx(6 * cost), pytest.approx(3 * cost)]
    assert json.loads((folder / "summary.json").read_text())["label_cost"] == pytest.approx(9 * cost)
    rows = [
        json.loads(line) for path in folder.glob("rounds/*/queried.jsonl") for line in path.read_text().splitlines()
    ]
    assert {row["annotator"] for row in rows} == {"fake"}
    assert all(row["response"].strip() == skills.solve(row["prompt"].strip()) for row in rows)
    # The second round's calls show what is labelled so far.
    assert len(endpoint.seen[-1]["messages"]) == 2 + 2 * 6
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert (tmp_path / "out" / CALLS_FILE) in files
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
