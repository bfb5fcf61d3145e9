"""A whole run whose labels come from a real language model, behind a proxy that spoils the first answer of each."""

import csv
import json

import httpx
import pytest
from fake_endpoint import FakeEndpoint
from shapes import have_one_shape

from star_jax.annotators.llm.calls import CALLS_FILE, CallLog
from star_jax.cli import run
from star_jax.cli.guard import guarded_main

pytestmark = pytest.mark.integration

GUIDELINES = "The user sends two digits. Answer T where the first digit is larger, and F where it is not."
KEY = "sk-integration-0123456789"


def test_a_run_with_malformed_answers_and_an_audit(language_model, tmp_path, monkeypatch, capfd, transcript):
    have_one_shape(monkeypatch)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    model = httpx.get(f"{language_model.url}/models", timeout=60).json()["data"][0]["id"]
    spoilt, lines = set(), []

    def forward(body):
        question = body["messages"][-1]["content"]
        asked = [one["content"] for one in body["messages"] if one["role"] == "user"]
        if question not in spoilt and "could not be used" not in question:
            spoilt.add(question)
            return "Sure! The answer is {T"
        reply = httpx.post(f"{language_model.url}/chat/completions", json=body, timeout=120).json()
        lines.append(f"  {asked[-1][:100]!r} -> {reply['choices'][0]['message']['content'][:100]!r}")
        return reply

    endpoint = FakeEndpoint(forward)
    with (tmp_path / "pool.csv").open("w", newline="") as file:
        # People have labelled half of it: without an example, so small a model repeats what it is told.
        pairs = [(a, b) for a in (2, 4, 6, 8) for b in (1, 5, 7)]
        rows = [(f"max {a} {b} =", ("T" if a > b else "F") * (place % 2)) for place, (a, b) in enumerate(pairs)]
        csv.writer(file).writerows([("question", "label"), *rows])
    (tmp_path / "test.csv").write_text("question,label\nmax 1 2 =,F\nmax 3 2 =,T\n")
    (tmp_path / "guide.md").write_text(GUIDELINES)
    out = tmp_path / "out"
    argv = [
        *("--model.path", "embedded:skills", "--annotator", "llm", "--llm.model", model),
        *("--llm.base-url", endpoint.url),
        *("--llm.guidelines", str(tmp_path / "guide.md"), "--llm.audit", "0.4", "--llm.parallel", "1"),
        *("--llm.input-price", "1", "--llm.output-price", "2", "--llm.max-tokens", "24", "--llm.shots", "3"),
        *("--output-dir", str(out), "--strategies", "random", "--lora.rank", "2", "--lora.targets", "v_proj"),
        *("--data.task", "generic", "--data.train", str(tmp_path / "pool.csv")),
        *("--data.test", str(tmp_path / "test.csv")),
        *("--data.max-prompt-tokens", "9", "--data.max-response-tokens", "6", "--format.prompt", "{{ question }} "),
        *("--format.response", "{{ label }}", "--format.answers", "T,F", "--format.match", "choice"),
        *("--training.replay", "none", "--training.replay-rows", "0", "--training.epochs", "1"),
        *("--loop.initial-labels", "5", "--loop.labels-per-round", "2", "--loop.rounds", "2"),
    ]  # fmt: skip
    try:
        for _ in range(8):  # a person audits whatever is asked for
            code = guarded_main(run.main, argv)
            said = capfd.readouterr()
            transcript.extend(
                ["$ star-jax run ...", *lines, said.out.strip(), said.err.strip()[-300:], f"exit code {code}"]
            )
            lines.clear()
            if code != 3:
                break
            table = out / "labels.csv"
            with table.open(newline="", encoding="utf-8-sig") as file:
                rows = list(csv.DictReader(file))
            with table.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(row | {"response": row["response"] or "F"} for row in rows)
    finally:
        endpoint.close()
    assert code == 0
    calls = CallLog(out / CALLS_FILE).calls()
    transcript.extend(
        f"call {call.id}: {call.said!r}, {call.input_tokens} + {call.output_tokens} tokens" for call in calls
    )
    by_example = {name: [call for call in calls if call.id == name] for name in {call.id for call in calls}}
    # Each example's first answer is the spoilt one; the next call says what was wrong with it.
    assert all(own[0].said.startswith("Sure!") and len(own) >= 2 for own in by_example.values())
    real = [call for own in by_example.values() for call in own[1:]]
    assert all(call.input_tokens > 20 and 0 < call.output_tokens <= 24 for call in real)
    assert all(call.cost == pytest.approx((call.input_tokens + 2 * call.output_tokens) / 1e6) for call in real)
    summary = json.loads((out / "random" / "seed-0" / "summary.json").read_text())
    assert summary["labelled"] == 7
    assert summary["label_cost"] == pytest.approx(sum(call.cost for call in calls))
    transcript.append(json.dumps(summary))
    assert not [file for file in out.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
