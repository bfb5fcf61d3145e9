"""Several experiments side by side, from run folders with made-up but known numbers."""

import io

import pytest
from rich.console import Console

from star_jax.cli import main
from star_jax.config import ExperimentConfig, LoopConfig
from star_jax.errors import DataError
from star_jax.report.compare import comparison_table
from star_jax.runs.run_folder import RunFolder


def write_run(root, strategy, seed, accuracies, finished=True):
    """One run folder with the given learning curve: 60 labels, then 50 more a round; ECE is 0.5 less accuracy."""
    loop = LoopConfig(initial_labels=60, labels_per_round=50, rounds=len(accuracies))
    with RunFolder.open(root, strategy, seed, ExperimentConfig(loop=loop).to_dict(), device="cpu") as folder:
        for number, accuracy in enumerate(accuracies):
            confident = [{"id": f"t{place}", "correct": place < 5, "confidence": 0.5} for place in range(10)]
            folder.write_round(number, [{"id": "p0", "score": None, "rank": 0, "group": "all"}], confident)
            row = {"round": number, "labelled": 60 + 50 * number, "accuracy": accuracy, "ece": 0.5 - accuracy}
            figures = dict.fromkeys(("nll", "brier", "auroc", "auroc_base", "train_loss", "lora_b_norm"), 0.5)
            folder.append_metrics({**row, **figures, "picked_groups": {"all": 1}, "group_accuracy": {"all": accuracy}})
        if finished:
            folder.write_summary({"strategy": strategy, "seed": seed})


@pytest.fixture
def experiments(tmp_path):
    for seed, last in enumerate((0.3, 0.5)):
        write_run(tmp_path / "one", "star", seed, [0.1, 0.2, last])
    write_run(tmp_path / "one", "random", 0, [0.1, 0.25])
    write_run(tmp_path / "other", "star", 0, [0.2, 0.4])
    write_run(tmp_path / "other", "star", 1, [0.2], finished=False)
    return [str(tmp_path / name) for name in ("one", "other")]


def cells(table):
    """The rows as they are printed, cell by cell."""
    shown = io.StringIO()
    Console(file=shown, width=300).print(table)
    lines = [line.split("  ") for line in shown.getvalue().splitlines() if line.strip() and "─" not in line]
    return [[cell.strip() for cell in line if cell.strip()] for line in lines]


def test_each_strategy_of_each_experiment_is_a_row(experiments):
    """Areas of 0.1, 0.2, 0.3 and of 0.1, 0.2, 0.5, by trapezoids over the labels, are 0.2 and 0.25."""
    one, other = experiments
    head, *rows = cells(comparison_table(experiments))
    assert head == ["experiment", "strategy", "seeds", "rounds", "labels", "accuracy", "ECE", "AUBC"]
    assert rows == [
        [one, "star", "2", "3", "160", "0.400 ± 0.141", "0.100 ± 0.141", "0.225 ± 0.035"],
        [one, "random", "1", "2", "110", "0.250", "0.250", "0.175"],
        [other, "star", "2", "1-2", "60-110", "0.300 ± 0.141", "0.200 ± 0.141", "0.250 ± 0.071"],
    ]


def test_a_folder_is_named_as_it_is_called(tmp_path):
    """Brackets are markup elsewhere."""
    write_run(tmp_path / "[bold]", "star", 0, [0.1, 0.2])
    assert cells(comparison_table([tmp_path / "[bold]"]))[1][:2] == [str(tmp_path / "[bold]"), "star"]


def test_a_console_without_the_sign_gets_another(experiments):
    assert cells(comparison_table(experiments[:1], " +/- "))[1][5] == "0.400 +/- 0.141"


def test_the_command_writes_every_report_and_prints_the_table_first(experiments, capsys):
    assert main.main(["report", *experiments]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == [f"{folder}/report.html" for folder in experiments]
    assert sum("star" in line for line in shown[:-2]) == 2
    assert main.main(["report", experiments[0]]) == 0
    assert capsys.readouterr().out == f"{experiments[0]}/report.html\n"


def test_a_folder_without_runs_is_one_sentence(experiments, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main.main(["report", experiments[0], str(tmp_path / "empty")]) == 2
    assert "holds no runs" in capsys.readouterr().err
    with pytest.raises((DataError, ValueError), match="holds no runs"):
        comparison_table([tmp_path / "empty"])
