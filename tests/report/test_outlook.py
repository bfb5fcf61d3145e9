"""What a report says of the labels to come, on curves whose course is known."""

import numpy as np
import pytest
from test_findings import a_run
from test_report import write_run

from star_jax.cli import main
from star_jax.report.outlook import print_outlook, said_outlook

LABELS = [60, 140, 220, 300, 380, 460]


def runs_of(accuracies, strategy="star", seeds=1, tests=50_000):
    found = [a_run(strategy, seed, accuracies, LABELS) for seed in range(seeds)]
    for run in found:
        run.__dict__["facts"] = {"test_examples": tests}
    return found


def power(a, b, c=1.0):
    return [a - b * (60 / labels) ** c for labels in LABELS]


def said(runs, target=None):
    return said_outlook(runs, target).replace("\N{NO-BREAK SPACE}", " ")


def test_accuracy_with_twice_the_labels():
    text = said(runs_of(power(0.9, 0.5)))
    assert text.startswith("If accuracy goes on as a power law of the labels, it will be 86.")
    assert "with twice as many, 920 (95 % interval 8" in text
    assert text.endswith("(one seed).")


def test_labels_for_a_target():
    """0.9 − 0.5·60/n is 0.85 at 600."""
    text = said(runs_of(power(0.9, 0.5), seeds=3), 0.85)
    labels = int(text.partition("takes about ")[2].partition(" labels")[0])
    assert abs(labels - 600) <= 10  # the exponents that are tried are 7 % apart
    assert f"85.0 % takes about {labels} labels in all, {labels - 460} more (95 % interval " in text
    assert text.endswith("(mean of 3 seeds).")


def test_a_target_that_has_been_reached():
    assert said(runs_of(power(0.9, 0.5)), 0.5).startswith("50.0 % was reached with about 88 labels")


def test_a_curve_that_cannot_tell_says_so():
    text = said(runs_of(power(0.7, 0.5)), 0.9)
    assert text.startswith("The curve cannot tell how many labels 90.0 % takes: more than 4,600, and no upper bound")
    assert "in 100 % of the resamples it never gets there" in text
    noisy = np.add(power(0.8, 0.5), [0, 0.03, -0.03, 0.03, -0.03, 0]).tolist()
    assert "cannot tell how many labels 79.0 % takes: at least about " in said(runs_of(noisy), 0.79)


@pytest.mark.parametrize("accuracies", [[], [0.4, 0.5, 0.6]])
def test_too_few_rounds(accuracies):
    assert said(runs_of(accuracies)) == "Too few rounds yet to say where accuracy is going; that takes four."


def test_only_curves_with_the_same_labels_have_a_mean():
    runs = runs_of(power(0.9, 0.5), seeds=2)
    for row in runs[1].rows:
        row["labelled"] += 1
    assert said(runs).endswith("(one seed).")
    del runs[1].rows[-1]
    assert said(runs).endswith("(one seed).")


def test_a_line_a_strategy(capsys):
    print_outlook([*runs_of(power(0.9, 0.5)), *runs_of(power(0.8, 0.5), "random")], 0.5, "here ")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["here star", "here random"]


def test_the_command_prints_it_and_writes_it_into_the_report(tmp_path, capsys):
    for strategy in ("star", "random"):
        write_run(tmp_path, strategy, 0, [0.4, 0.5, 0.56, 0.6, 0.62])
    assert main.main(["report", str(tmp_path), "--target", "0.55"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = "55.0 % was reached with about 152 labels (one seed)."
    assert lines == [f"star: {said}", f"random: {said}", str(tmp_path / "report.html")]
    assert said in (tmp_path / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert main.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "report.html")]
    assert "with twice as many, 520" in (tmp_path / "report.html").read_text().replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize("target", ["0", "1", "80", "nan"])
def test_a_target_that_is_no_accuracy_is_refused(tmp_path, capsys, target):
    assert main.main(["report", str(tmp_path), "--target", target]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"star_jax: error: --target is {target}; it must be an accuracy between 0 and 1")
