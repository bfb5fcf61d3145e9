"""Two rounds in a real browser: reloads, a server that is killed twice, an edit by hand, a second opinion."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from star_jax.benchmarks.skills import generator as skills

pytestmark = pytest.mark.browser

CONFIG = """
output_dir: out
strategies: [entropy]
model: {path: embedded:skills}
lora: {rank: 2, targets: [v_proj]}
training: {epochs: 1, batch_size: 16}
loop: {initial_labels: 4, labels_per_round: 3, rounds: 2}
data: {task: generic, train: pool.csv, test: test.csv, max_prompt_tokens: 9, max_response_tokens: 6}
format: {prompt: "{{ question }} ", response: "{{ label }}"}
labels: {columns: [kind]}
"""
GUIDELINES = "# Digits\n\n`rev` turns them round.\n\n| word | what to write |\n|---|---|\n| desc | sorted |\n"
SECONDS = 120_000
"""Milliseconds that a round may take on a busy machine; nothing is measured."""


@pytest.fixture
def folder(tmp_path, seed):
    """An experiment that waits for its first labels."""
    pool = skills.pool_examples("R1", seed, 24)
    with (tmp_path / "pool.csv").open("w") as file:
        rows = [(one.prompt.text, skills.skill_of(one.prompt.text)) for one in pool]
        csv.writer(file).writerows([("question", "kind"), *rows])
    with (tmp_path / "test.csv").open("w") as file:
        rows = [(one.prompt.text, one.response) for one in skills.test_examples()[::60]]
        csv.writer(file).writerows([("question", "label"), *rows])
    (tmp_path / "experiment.yaml").write_text(CONFIG)
    (tmp_path / "guidelines.md").write_text(GUIDELINES)
    command = [sys.executable, "-m", "star_jax", "run", "--config", "experiment.yaml"]
    assert subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, timeout=300).returncode == 3
    return tmp_path


def environment():
    """Programs are kept in the folder of the test runs, as they are for a person."""
    return {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "true"}


class Server:
    """`star-jax label`, which may be killed and started again on the same port."""

    def __init__(self, folder):
        self.folder = folder
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.start()

    def start(self):
        flags = ["--port", str(self.port), "--guidelines", "guidelines.md", "--cost-per-label", "0.2"]
        flags += ["--currency", "EUR", "--annotator", "ann", "--pause", "2", "--browser", "false"]
        command = [sys.executable, "-m", "star_jax", "label", "out", *flags]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", line)
        assert found, line + self.process.stdout.read()
        self.address = found.group()

    def kill(self):
        """As a power cut does: nothing is said to anybody."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def server(folder):
    started = Server(folder)
    yield started
    if started.process.poll() is None:
        started.process.send_signal(signal.SIGINT)
        started.process.wait(90)
    print(started.process.stdout.read())  # what a failure is told by
    started.process.stdout.close()


def rows(folder):
    with (folder / "out" / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def shown(page):
    """Id of the example on the page."""
    return page.locator("#answer").get_attribute("data-id")


def answer(page):
    """Types the right answer to what is shown, and waits for the page to move on."""
    name = shown(page)
    page.locator("#response").fill(skills.solve(page.locator("#prompt").inner_text().strip()))
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.querySelector('#answer')?.dataset.id !== name", arg=name)
    return name


def test_two_rounds_with_reloads_and_kills(folder, server, page, shoot):
    page.goto(server.address)
    shoot(page, "first-example")
    # 1. An answer is on disk before the next example is there.
    first = answer(page)
    given = rows(folder)[first]
    assert (given["response"], given["annotator"]) == (skills.solve(given["prompt"]), "ann")
    shoot(page, "one-labelled")
    # 2. A reload shows the same, with what has been typed.
    second = shown(page)
    page.locator("#response").fill("half an ans")
    page.reload()
    assert (shown(page), page.locator("#response").input_value()) == (second, "half an ans")
    # 3. Skipped, taken back, skipped again: another example will stand in.
    for _ in range(2):
        page.keyboard.press("Alt+s")
        shoot(page, "skip")
        page.keyboard.press("1")
        page.wait_for_function("name => document.querySelector('#answer')?.dataset.id !== name", arg=second)
        assert (rows(folder)[second]["response"], rows(folder)[second]["skip_reason"]) == (
            "[skip]",
            "the text is unclear",
        )
        if _ == 0:
            page.keyboard.press("Alt+u")
            page.wait_for_function("name => document.querySelector('#answer')?.dataset.id === name", arg=second)
            assert rows(folder)[second]["response"] == ""
    # 4. The server dies with an answer half written: the page says so and keeps it.
    server.kill()
    third = shown(page)
    page.locator("#response").fill("9 9")
    page.keyboard.press("Enter")
    page.locator("#lost").wait_for()
    shoot(page, "server-killed")
    server.start()
    page.goto(server.address)
    assert (shown(page), page.locator("#response").input_value()) == (third, "9 9")
    answer(page)
    # 5. The last of the round; training begins by itself, for the example that stands in is asked for first.
    answer(page)
    page.locator("#state").wait_for()
    shoot(page, "round-is-full")
    page.locator("[data-phase=running]").wait_for(timeout=SECONDS)
    shoot(page, "running")
    page.locator("#answer").wait_for(timeout=SECONDS)
    assert len(rows(folder)) == 5
    answer(page)
    # 6. Killed while the model trains: the run goes on alone, and a new page finds it.
    page.locator("[data-phase=running] .line").get_by_text("train").wait_for(timeout=SECONDS)
    shoot(page, "training")
    server.kill()
    server.start()
    page.goto(server.address)
    page.get_by_text("another process is at work on it").wait_for()
    page.locator("#answer").wait_for(timeout=SECONDS)
    assert page.locator(".round").inner_text() == "round 2 of 2"
    assert page.locator(".guess").count() == 1
    assert page.locator("#response").input_value() == page.locator(".guess q").inner_text().strip("“”")
    shoot(page, "second-round")
    # 7. One label is written by hand, into the table; the page notices.
    at_hand = shown(page)
    by_hand = next(name for name, row in rows(folder).items() if not row["response"] and name != at_hand)
    table = folder / "out" / "labels.csv"
    lines = table.read_text("utf-8-sig").splitlines()
    prompt = rows(folder)[by_hand]["prompt"]
    lines = [
        line.replace(f'"{prompt}",""', f'"{prompt}","{skills.solve(prompt)}"') if by_hand in line else line
        for line in lines
    ]
    table.write_text("\n".join(lines) + "\n")
    page.get_by_text("1 of 3 labelled").wait_for()
    # 8. A second person looks at what the first has labelled, and disagrees.
    page.locator("#who").fill("bob")
    page.locator("#who").press("Enter")
    page.locator("#agreement summary").click()
    page.get_by_text("Label what others have labelled").click()
    page.locator(".mode").wait_for()
    looked_at = shown(page)
    page.locator("#response").fill("1 2 3")
    shoot(page, "second-opinion")
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.querySelector('#answer')?.dataset.id !== name", arg=looked_at)
    row = rows(folder)[looked_at]
    assert (row["annotator"], row["response (bob)"]) == ("ann", "1 2 3")
    assert row["response"] == skills.solve(row["prompt"])
    page.goto(server.address)
    page.locator("#agreement a").first.click()
    page.locator(".opinions").wait_for()
    assert page.locator("#response").input_value() == row["response"]
    shoot(page, "disagreement")
    page.locator("#response").fill(skills.solve(row["prompt"]))
    page.keyboard.press("Enter")
    page.locator(".mode").wait_for(state="detached")
    assert rows(folder)[looked_at]["decided_by"] == "bob"
    # 9. The rest, in the dark, on a telephone; then all is done.
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 800})
    shoot(page, "telephone")
    answer(page)
    answer(page)
    page.locator("[data-phase=finished]").wait_for(timeout=SECONDS)
    shoot(page, "finished")
    assert page.locator("main").evaluate("node => node.scrollWidth <= node.clientWidth")
    run = folder / "out" / "entropy" / "seed-0"
    assert json.loads((run / "summary.json").read_text())["labelled"] == 7
    used = [
        json.loads(line)
        for file in sorted(run.glob("rounds/*/queried.jsonl"))
        for line in file.read_text().splitlines()
    ]
    table_now = rows(folder)
    assert {one["id"] for one in used} == table_now.keys()
    for one in used:
        text = table_now[one["id"]]["response"]
        assert one["response"] == (None if text == "[skip]" else f" {text}" if one["response"][0] == " " else text)
