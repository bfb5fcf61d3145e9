"""Closed answers in a real browser: a round with nothing but keys, wide and narrow, light and dark."""

import csv
import re
import signal
import subprocess
import sys

import pytest
from waiting import make_run

from star_jax.annotators.annotator import Request
from star_jax.annotators.csv_file import FileAnnotator
from star_jax.config import FormatConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task

pytestmark = pytest.mark.browser

TOPICS = ("delivery", "refund", "size", "payment", "broken item", "praise")
MESSAGES = (
    "Hi, my parcel was supposed to arrive on Tuesday and the tracking page has said 'in transit' ever since. "
    "Could you find out where it is?",
    "The zip of the jacket came off on the second day.",
    "I was charged twice for order 1182.",
    "These shoes run small: I usually wear 42 and needed 43.",
)
GUIDELINES = """# Topics of messages

Choose what the customer wants **first**. A late parcel that arrived broken is a *broken item*.

| topic | for example |
|---|---|
| delivery | "where is my parcel?" |
| refund | "I want my money back" |
| size | "it runs small" |
"""


def address_of(folder, topics, *flags):
    """A folder that waits for labels, and its page."""
    make_run(folder, "star", 0)
    task = get_task("generic", FormatConfig(answers=topics))
    person = FileAnnotator({}, "abcd", folder / "labels.csv", task)
    scores = (0.97, 0.9, 0.88, 0.71)
    person.annotate(
        [
            Request(Prompt(name, text), rank, scores[rank], "star", 2 * scores[rank], topics[(rank + 4) % len(topics)])
            for rank, (name, text) in enumerate(zip("abcd", MESSAGES, strict=True))
        ]
    )
    (folder / "guidelines.md").write_text(GUIDELINES)
    command = [sys.executable, "-m", "star_jax", "label", str(folder), "--port", "0", "--browser", "false", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, re.search(r"http://\S+", process.stdout.readline()).group()


@pytest.fixture
def open_page(tmp_path):
    opened = []

    def start(topics, *flags):
        process, address = address_of(tmp_path / "shop", topics, "--pause", "1000", *flags)
        opened.append(process)
        return address

    yield start
    for process in opened:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        process.stdout.close()


def labels(tmp_path):
    with (tmp_path / "shop" / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
        return [row["response"] for row in csv.DictReader(file)]


def moved_on(page, name):
    page.wait_for_function("name => document.querySelector('#answer')?.dataset.id !== name", arg=name)


def test_a_round_with_nothing_but_keys(tmp_path, page, shoot, open_page):
    guide = str(tmp_path / "shop" / "guidelines.md")
    flags = ("--guidelines", guide, "--cost-per-label", "0.15", "--currency", "EUR", "--annotator", "ann")
    address = open_page(TOPICS, *flags)
    page.goto(address)
    shoot(page, "wide-light")
    page.emulate_media(color_scheme="dark")
    shoot(page, "wide-dark")
    page.keyboard.press("1")
    moved_on(page, "a")
    assert labels(tmp_path) == ["delivery", "", "", ""]
    page.keyboard.press("5")
    moved_on(page, "b")
    page.keyboard.press("u")
    moved_on(page, "c")
    assert labels(tmp_path) == ["delivery", "", "", ""]
    page.keyboard.press("5")
    moved_on(page, "b")
    page.keyboard.press("s")
    page.keyboard.press("2")
    moved_on(page, "c")
    assert labels(tmp_path) == ["delivery", "broken item", "[skip]", ""]
    page.set_viewport_size({"width": 390, "height": 800})
    shoot(page, "narrow-dark")
    page.emulate_media(color_scheme="light")
    shoot(page, "narrow-light")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("3")
    page.locator("#state").wait_for()
    shoot(page, "full")
    page.keyboard.press("u")
    page.locator("#answer").wait_for()
    assert labels(tmp_path)[3] == ""


def test_many_answers_are_searched(tmp_path, page, shoot, open_page):
    topics = tuple(f"{topic} of {thing}" for topic in TOPICS for thing in ("shoes", "a jacket", "a bag"))
    page.goto(open_page(topics))
    page.locator("#search").fill("refund of a b")
    shoot(page, "search")
    page.keyboard.press("Enter")
    moved_on(page, "a")
    assert labels(tmp_path)[0] == "refund of a bag"


def test_nobody_else_on_this_machine_gets_in(page, open_page):
    address = open_page(TOPICS)
    root = re.match(r"http://[^/]+/", address).group()
    assert page.goto(root).status == 404
    assert page.goto(f"{root}{'x' * 32}/").status == 404


def test_a_key_that_is_held_down_answers_once(tmp_path, page, open_page):
    page.goto(open_page(TOPICS))
    page.keyboard.down("1")
    moved_on(page, "a")
    for _ in range(3):
        page.keyboard.down("1")  # what a keyboard sends until the key is let go
    page.keyboard.up("1")
    page.keyboard.press("2")
    moved_on(page, "b")
    assert labels(tmp_path) == [*TOPICS[:2], "", ""]
