"""A whole run whose labels come from a real Label Studio: asked, annotated, skipped, corrected."""

import csv
import json

import httpx
import pytest
from servers import TOKEN
from shapes import have_one_shape

from star_jax.annotators.label_studio.annotator import PROJECT_FILE
from star_jax.benchmarks.skills import generator as skills
from star_jax.cli import run
from star_jax.cli.guard import guarded_main

pytestmark = pytest.mark.integration


def write(path, examples, labelled):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", *(["label"] if labelled else [])])
        writer.writerows([one.prompt.text, *([one.response] if labelled else [])] for one in examples)


class Person:
    """Labels in the project of an experiment, through the interface that the page of Label Studio itself uses."""

    def __init__(self, url, folder):
        self.url, self.folder = url, folder

    def ask(self, method, path, **options):
        answer = httpx.request(
            method, self.url + path, headers={"Authorization": f"Token {TOKEN}"}, timeout=60, **options
        )
        assert answer.is_success, answer.text[:500]
        return json.loads(answer.text)

    def tasks(self):
        project = json.loads((self.folder / PROJECT_FILE).read_text())["project"]
        options = {"exportType": "JSON", "download_all_tasks": "true"}
        return self.ask("GET", f"/api/projects/{project}/export", params=options)

    def annotate(self, task, text):
        value = {"from_name": "answer", "to_name": "prompt", "type": "textarea", "value": {"text": [text]}}
        said = {"result": [], "was_cancelled": True} if text is None else {"result": [value]}
        self.ask("POST", f"/api/tasks/{task['id']}/annotations/", json=said)


def test_two_rounds_with_a_skip_and_a_correction(label_studio, tmp_path, monkeypatch, capfd, transcript, seed):
    have_one_shape(monkeypatch)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    write(tmp_path / "pool.csv", skills.pool_examples("R1", seed, 20), labelled=False)
    write(tmp_path / "test.csv", skills.test_examples()[::60], labelled=True)
    out = tmp_path / "out"
    argv = [
        *("--model.path", "embedded:skills", "--annotator", "label_studio", "--label-studio.url", label_studio.url),
        *("--output-dir", str(out), "--strategies", "entropy", "--lora.rank", "2", "--lora.targets", "v_proj"),
        *("--data.task", "generic", "--data.train", str(tmp_path / "pool.csv")),
        *("--data.test", str(tmp_path / "test.csv")),
        *("--data.max-prompt-tokens", "9", "--data.max-response-tokens", "6", "--format.prompt", "{{ question }} "),
        *("--format.response", "{{ label }}", "--training.replay", "none", "--training.replay-rows", "0"),
        *("--loop.initial-labels", "6", "--loop.labels-per-round", "3", "--loop.rounds", "2", "--training.epochs", "1"),
    ]  # fmt: skip

    def play():
        code = guarded_main(run.main, argv)
        said = capfd.readouterr().out
        transcript.extend(["$ star-jax run ...", said.strip(), f"exit code {code}", ""])
        return code, said

    person, asked = Person(label_studio.url, out), 0
    while (result := play())[0] == 3:
        open_tasks = [task for task in person.tasks() if not task["annotations"]]
        assert (
            f"{len(open_tasks)} examples need a label: annotate the tasks in {label_studio.url}/projects/" in result[1]
        )
        for task in open_tasks:
            # The first is skipped; the second is wrong, and corrected once the first round has used it.
            answer = {0: None, 1: "9"}.get(asked, skills.solve(task["data"]["prompt"].strip()))
            transcript.append(f"  task {task['id']} {task['data']['prompt']!r} -> {answer!r}")
            person.annotate(task, answer)
            asked += 1
        if asked == 10:  # 6, one for the skip, and 3
            wrong = person.tasks()[1]
            person.annotate(wrong, skills.solve(wrong["data"]["prompt"].strip()))
    assert (result[0], asked) == (0, 10)
    folder = out / "entropy" / "seed-0"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["labelled"], row.get("skipped"), row.get("corrected")) for row in metrics] == [
        (6, 1, None),
        (9, None, 1),
    ]
    rows = [json.loads(line) for line in (folder / "rounds" / "001" / "queried.jsonl").read_text().splitlines()]
    assert all(row["response"].strip() == skills.solve(row["prompt"].strip()) for row in rows)
    assert all(row["annotator"] and row["labelled_at"] for row in rows)
    guesses = [task["predictions"] for task in person.tasks()]
    assert any(guesses)  # of what the model has picked
    assert not [file for file in out.rglob("*") if file.is_file() and TOKEN.encode() in file.read_bytes()]
