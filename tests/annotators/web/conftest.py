"""A table as a run has left it, and runs that do what a test says."""

import csv

import pytest

from star_jax.annotators.annotator import Request
from star_jax.annotators.csv_file import FileAnnotator, TableOptions
from star_jax.annotators.label_table import LabelTable
from star_jax.annotators.web.desk import Desk
from star_jax.config import FormatConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task

PROMPTS = [Prompt("a", "is it light?"), Prompt("b", "is it <b>sound</b>?"), Prompt("c", "and this?")]
ANSWERS = ("light", "sound")


@pytest.fixture
def make_table(tmp_path):
    """A table that asks for labels of three prompts."""

    def make(answers=ANSWERS, columns=None, strategy="star"):
        task = get_task("generic", FormatConfig(answers=answers))
        path = tmp_path / "labels.csv"
        person = FileAnnotator({}, "abcd", path, task, options=TableOptions(columns=columns or {}))
        guesses = ["sound", None, "light"]
        person.annotate(
            [
                Request(prompt, rank, 0.5 - rank / 10, strategy, 2.0 + rank, guess, strategy)
                for rank, (prompt, guess) in enumerate(zip(PROMPTS, guesses, strict=True))
            ]
        )
        return LabelTable(path)

    return make


@pytest.fixture
def desk(make_table):
    return Desk(make_table())


@pytest.fixture
def rows(tmp_path):
    """Id -> row of the table on disk."""

    def read():
        with (tmp_path / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
            return {row["id"]: row for row in csv.DictReader(file)}

    return read


class FakeRuns:
    """Runs whose processes, and what they find, a test decides."""

    def __init__(self):
        self.script, self.at_work, self.over = "exit 3", False, False
        self.trained, self.round = frozenset(), (0, 2)

    def command(self):
        return ["sh", "-c", self.script]

    def busy(self):
        return self.at_work

    def finished(self):
        return self.over

    def used(self):
        return self.trained

    def rounds(self):
        return self.round

    def accuracy(self):
        return 0.25 if self.round[0] else None


@pytest.fixture
def runs():
    return FakeRuns()
