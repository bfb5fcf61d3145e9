"""The report, from run folders with made-up but known numbers."""

import base64
import html.parser
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import warnings

import numpy as np
import pytest

from star_jax.cli.guard import guarded_main
from star_jax.cli.report import main
from star_jax.config import ExperimentConfig, LoopConfig, ScoringConfig, TrainingConfig
from star_jax.errors import ConfigError, DataError
from star_jax.evaluation.intervals import wilson
from star_jax.report import figures, page, read
from star_jax.report.drawing import GREY, PHASE_COLOURS, looks
from star_jax.report.findings import PERCENT, percent
from star_jax.runs.run_folder import RunFolder
from star_jax.tracking.timing import PHASES

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PNG = b"\x89PNG\r\n\x1a\n"
GROUPS = ("sort", "rev", "add", "max", "chain", "desc", "second", "swap", "rinc", "ge", "rot2", "mininc", "copy", "lt")
GAIN = {"star": 0.06, "entropy": 0.03, "random": 0.0, "bald": 0.04}


def make_row(number, labelled, accuracy, rng, scored=True):
    shares = rng.dirichlet(np.ones(len(GROUPS)) * 0.6) if scored else np.ones(len(GROUPS)) / len(GROUPS)
    counts = rng.multinomial(50, shares)
    return {
        "round": number,
        "labelled": labelled,
        "accuracy": accuracy,
        "nll": 2 - accuracy,
        "brier": 0.3 - 0.2 * accuracy,
        "ece": 0.25 - 0.2 * accuracy,
        "ece_equal_mass": 0.2,
        "auroc": min(0.95, 0.75 + 0.03 * number + 0.01 * rng.standard_normal()),
        "auroc_base": 0.85 - 0.03 * number + 0.01 * rng.standard_normal(),
        "lora_b_norm": 1.5,
        "train_seconds": 3.0 + number,
        "score_seconds": 2.5 if scored else 0.0,
        "evaluate_seconds": 1.0,
        "train_loss": 0.5,
        "score_length_correlation": 0.6 - 0.05 * number if scored and number else None,
        "picked_groups": {name: int(count) for name, count in zip(GROUPS, counts, strict=True) if count},
        "group_accuracy": {name: float(min(1, accuracy + 0.2 * rng.uniform(-1, 1))) for name in GROUPS[:12]},
    }


def write_run(root, strategy, seed, accuracies, finished=True, scored=True, **settings):
    """One run folder with the given learning curve: 60 labels, then 50 more a round."""
    rng = np.random.default_rng([seed, len(strategy)])
    loop = LoopConfig(initial_labels=60, labels_per_round=50, rounds=len(accuracies) + (0 if finished else 3))
    config = ExperimentConfig(loop=loop, **settings).to_dict()
    with RunFolder.open(root, strategy, seed, config, device="cpu") as folder:
        for number, accuracy in enumerate(accuracies):
            confidence = rng.beta(4, 2, 240)
            correct = rng.random(240) < confidence**1.3
            folder.write_round(
                number,
                [{"id": "p0", "score": None, "rank": 0, "group": "sort"}],
                [
                    {"id": f"t{index}", "correct": bool(right), "confidence": float(value)}
                    for index, (right, value) in enumerate(zip(correct, confidence, strict=True))
                ],
            )
            folder.append_metrics(make_row(number, 60 + 50 * number, accuracy, rng, scored and strategy != "random"))
        if finished:
            folder.write_summary({"strategy": strategy, "seed": seed})
    return folder.path


def write_experiment(root, strategies=("random", "star", "entropy"), seeds=3, rounds=8, **settings):
    """Finished runs with noisy, rising curves; the curves by (strategy, seed)."""
    curves = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        base = 0.75 - 0.45 * np.exp(-np.arange(rounds) / 3) + 0.01 * rng.standard_normal()
        for strategy in strategies:
            curve = base + GAIN[strategy] * np.arange(rounds) / rounds * 1.5 + 0.008 * rng.standard_normal(rounds)
            curves[strategy, seed] = [float(value) for value in curve]
            write_run(root, strategy, seed, curves[strategy, seed], **settings)
    return curves


class Cells(html.parser.HTMLParser):
    """Tables by id as lists of rows of texts, the other text, and the sources of the images."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.images, self.words = {}, [], []
        self._rows, self._open = None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self._rows = self.tables.setdefault(attributes["id"], [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._open = True
        elif tag == "img":
            self.images.append(attributes["src"])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data):
        if self._open:
            self._rows[-1][-1] += data
        else:
            self.words.append(data)

    @property
    def prose(self):
        return " ".join(" ".join(self.words).split())


def read_page(root):
    return Cells(page.build_report(root).read_text())


def area(curve):
    """Mean height of the trapezoids, written out."""
    return sum((left + right) / 2 for left, right in itertools.pairwise(curve)) / (len(curve) - 1)


def spread(values):
    text = f"{statistics.fmean(values):.3f} ± {statistics.stdev(values):.3f}"
    return text.replace("-", MINUS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An output folder with three strategies, its curves, and the page built from it."""
    root = tmp_path_factory.mktemp("finished")
    curves = write_experiment(root, rounds=4)
    # A seed that random does not have takes no part in comparisons.
    curves["star", 9] = [0.5, 0.6, 0.7, 0.9]
    write_run(root, "star", 9, curves["star", 9])
    return root, curves, read_page(root)


def test_the_headline_holds_the_numbers_of_the_runs(finished):
    _, curves, shown = finished
    header, *rows = shown.tables["headline"]
    assert [re.match("[a-zA-Z]+?(?=higher|lower|above|$)", cell)[0] for cell in header] == [
        *("strategy", "seeds", "labels", "accuracy", "AUBC", "RIPL", "ECE", "Brier", "NLL", "AUROC")
    ]
    assert [row[0] for row in rows] == ["star", "entropy", "random"]
    for name, *cells in rows:
        seeds = [0, 1, 2, 9] if name == "star" else [0, 1, 2]
        last = [curves[name, seed][-1] for seed in seeds]
        areas = [area(curves[name, seed]) for seed in seeds]
        bases = [area(curves["random", seed]) for seed in range(3)]
        gains = [(ours - base) / (1 - base) for ours, base in zip(areas[:3], bases, strict=True)]
        assert cells[:2] == [str(len(seeds)), "210"]
        assert cells[2:5] == [spread(last), spread(areas), DASH if name == "random" else spread(gains)]
        assert cells[5] == spread([0.25 - 0.2 * value for value in last])
        assert cells[6] == spread([0.3 - 0.2 * value for value in last])
        assert cells[7] == spread([2 - value for value in last])


def test_paired_differences_use_common_seeds_only(finished):
    _, curves, shown = finished
    difference = [area(curves["star", seed]) - area(curves["random", seed]) for seed in range(3)]
    mean, sd = statistics.fmean(difference), statistics.stdev(difference)
    half = 4.302653 * sd / 3**0.5  # Student's 0.975 quantile for 2 degrees of freedom
    row = shown.tables["paired"][1]
    assert row[:3] == ["star", "3", f"{mean:+.3f} ± {sd:.3f}".replace("-", MINUS)]
    assert row[3] == f"{mean - half:+.3f} to {mean + half:+.3f}".replace("-", MINUS)
    assert row[4] == f"{sum(value > 0 for value in difference)} of 3"
    assert float(row[6]) >= 0.25  # the smallest two-sided p of three pairs: 2 / 2^3
    assert [row[0] for row in shown.tables["paired"]] == ["strategy", "star", "entropy"]


def test_areas_over_different_budgets_are_not_compared(tmp_path):
    write_run(tmp_path, "random", 0, [0.3, 0.5])
    write_run(tmp_path, "star", 0, [0.3, 0.5, 0.9])
    runs = read.read_runs(tmp_path)
    assert read.compare(runs) == []
    assert [row.cells[2] for row in page.headline(runs)] == [DASH, DASH]


def test_the_page_is_one_file_with_every_figure(finished):
    root, _, shown = finished
    text = (root / "report.html").read_text()
    assert sorted(os.listdir(root)) == ["entropy", "learning_curve.png", "random", "report.html", "star"]
    assert len(shown.images) == 11
    for source in shown.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(PNG)
    assert base64.b64decode(shown.images[0].split(",")[1]) == (root / "learning_curve.png").read_bytes()
    assert not re.search(r"<script|https?://|<link", text)
    assert "labels_per_round: 50" in text
    assert str(root) not in shown.prose


def test_figures_are_the_same_whatever_the_users_own_style(tmp_path):
    import matplotlib

    write_run(tmp_path, "star", 0, [0.3, 0.5])
    runs = read.read_runs(tmp_path)
    before = figures.learning_curve(runs)
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "black", "font.size": 30}):
        assert figures.learning_curve(runs) == before


def test_unfinished_runs_are_shown_marked_and_kept_out_of_means(tmp_path):
    for seed in range(2):
        write_run(tmp_path, "random", seed, [0.3, 0.4])
        write_run(tmp_path, "star", seed, [0.3, 0.5 + 0.1 * seed])
    write_run(tmp_path, "star", 5, [0.1, 0.2], finished=False)
    write_run(tmp_path, "bald", 0, [0.3, 0.4, 0.5], finished=False)
    write_run(tmp_path, "aaa", 0, [], finished=False)
    shown = read_page(tmp_path)
    rows = {row[0]: row for row in shown.tables["headline"][1:]}
    assert list(rows) == ["star", "aaa unfinished", "bald unfinished", "random"]
    assert rows["aaa unfinished"][1:] == ["0 of 1", *[DASH] * 8]
    assert rows["star"][1] == "2 of 3"
    assert rows["star"][3] == spread([0.5, 0.6])
    assert rows["bald unfinished"][1:6] == ["0 of 1", "160", "0.500", DASH, DASH]
    assert (
        "Unfinished: star seed 5 (2 of 5 rounds), aaa seed 0 (0 of 3 rounds), bald seed 0 (3 of 6 rounds)"
        in shown.prose
    )
    assert [row[0] for row in shown.tables["paired"][1:]] == ["star"]


def test_what_a_run_does_not_have_is_a_dash_or_left_out(tmp_path):
    config = ExperimentConfig().to_dict()
    with RunFolder.open(tmp_path, "<b>$x$", 0, config, device="cpu") as folder:
        folder.append_metrics({"round": 0, "labelled": 500, "accuracy": 0.5, "auroc": None, "ece": None})
        folder.write_summary({})
    (folder.path / "environment.json").unlink()
    shown = read_page(tmp_path)
    # One round has an area, its own accuracy; a name that looks like markup is only a name.
    assert shown.tables["headline"][1] == ["<b>$x$", "1", "500", "0.500", "0.500", *[DASH] * 5]
    assert "paired" not in shown.tables
    assert len(shown.images) == 1
    assert "Random selection was not run" in shown.prose


def test_the_time_of_a_run_is_its_summary_or_while_it_runs_its_rows(tmp_path):
    write_run(tmp_path, "star", 0, [0.3, 0.5], finished=False)
    folder = write_run(tmp_path, "random", 0, [0.3, 0.4])
    spent = dict.fromkeys(("total", *PHASES), 1.0) | {"total": 3700.0, "compile": 1234.5, "write": 0.0}
    (folder / "summary.json").write_text(json.dumps({"seconds": spent}))
    star, random = read.read_runs(tmp_path)
    assert star.seconds == dict.fromkeys(("total", *PHASES), 0.0) | {
        "total": 14.0,
        "train": 7.0,
        "score": 5.0,
        "evaluate": 2.0,
    }
    assert random.seconds == spent
    shown = read_page(tmp_path)
    assert "2 rounds, 14.0 s (seconds: score 5.0, train 7.0, evaluate 2.0)" in shown.prose
    assert "2 rounds, 1 h 01 min (seconds: compile 1,234.5, load 1.0" in shown.prose
    assert set(PHASE_COLOURS) == set(PHASES)


def test_the_first_sentence_says_what_the_numbers_allow(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "clear", "star", seed, [0.3, 0.5 + 0.01 * seed])
        write_run(tmp_path / "clear", "random", seed, [0.3, 0.4])
    clear = page.lead(read.read_runs(tmp_path / "clear"))
    assert clear.startswith("After 110 labels, star answers 51.0\N{NO-BREAK SPACE}% of")
    assert "above random's" in clear
    assert "larger on 3 of 3 paired seeds" in clear
    assert "does not include zero" in clear
    for seed, (ours, theirs) in enumerate([(0.5, 0.6), (0.6, 0.5), (0.5, 0.52)]):
        write_run(tmp_path / "open", "star", seed, [0.3, ours])
        write_run(tmp_path / "open", "random", seed, [0.3, theirs])
    unclear = page.lead(read.read_runs(tmp_path / "open"))
    assert "below random's" in unclear
    assert "leaves open" in unclear
    write_run(tmp_path / "one", "random", 0, [0.3, 0.5])
    write_run(tmp_path / "one", "entropy", 0, [0.3, 0.6])
    write_run(tmp_path / "one", "star", 1, [0.3, 0.9])
    one = page.lead(read.read_runs(tmp_path / "one"))
    assert one.startswith("After 110 labels, entropy answers 60.0\N{NO-BREAK SPACE}% of the test set correctly")
    assert "0.050 above random's; that is one seed" in one
    write_run(tmp_path / "none", "random", 0, [0.3, 0.5], finished=False)
    assert "no comparison" in page.lead(read.read_runs(tmp_path / "none"))


def test_notes_say_what_the_figures_depend_on(tmp_path):
    replay = TrainingConfig(replay="embedded:skills", replay_rows=16)
    write_run(tmp_path, "star", 0, [0.3, 0.5], training=replay)
    write_run(tmp_path, "random", 0, [0.3, 0.5], training=TrainingConfig(epochs=8))
    said = " ".join(page.notes(read.read_runs(tmp_path)))
    assert "training.epochs is 3 or 8" in said
    assert "16 replay rows" in said
    assert "strategies is" not in said
    assert "oracle" not in said
    write_run(tmp_path, "star", 1, [0.3], scoring=ScoringConfig(answers="reference"))
    assert "oracle" in " ".join(page.notes(read.read_runs(tmp_path)))


def write_labels(root, cells):
    rows = "".join(f'"p{number}","text {number}","{cell}"\n' for number, cell in enumerate(cells))
    (root / "labels.csv").write_text("id,prompt,response\n" + rows, encoding="utf-8")


@pytest.mark.parametrize("rounds", [0, 2])
def test_while_labels_are_waited_for_the_page_begins_with_that(tmp_path, rounds):
    folder = write_run(tmp_path, "star", 0, [0.3, 0.5][:rounds], finished=False)
    (folder / f"choice-{rounds:03d}.npz").touch()
    write_labels(tmp_path, ["yes", "", " ", "no", ""])
    shown = read_page(tmp_path)
    said = page.lead(read.read_runs(tmp_path))
    assert said.startswith(
        "Waiting for labels: 3 of the 5 examples in labels.csv have no label yet; fill in the column"
    )
    assert " ".join(said.split()) in shown.prose
    assert ("headline" in shown.tables) == (rounds > 0)
    assert "With 110 labels, picked by star" in said or not rounds
    assert "Write the labels, then go on, with the command" in shown.prose


def test_a_run_that_was_stopped_before_its_training_waits_for_nobody(tmp_path):
    """What it picked is labelled by the pool, so there is no table of labels."""
    folder = write_run(tmp_path, "star", 0, [0.3], finished=False)
    (folder / "choice-001.npz").touch()
    assert "Waiting" not in page.lead(read.read_runs(tmp_path))


def test_one_strategy_on_own_labels_is_told_what_it_has_come_to(tmp_path):
    folder = write_run(tmp_path, "star", 0, [0.4, 0.5, 0.6])
    (folder / "data.json").write_text(json.dumps({"test_examples": 50, "pool_examples": 900, "test_overlap": 7}))
    rows = [json.loads(line) | {"base_accuracy": 0.25} for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prose = read_page(tmp_path).prose.replace("\N{NO-BREAK SPACE}", " ")
    low, high = 46.2, 72.4  # Wilson's interval of 30 of 50
    assert (
        f"With 160 labels, picked by star, the model answers 60.0 % of the 50 test examples correctly ({low} % to "
        f"{high} % at 95 %"
    ) in prose
    assert "The base model answers 25.0 % of the test set correctly; training on 160 labels added 35.0 points." in prose
    assert "7 of the 900 prompts of the pool are also in the test set" in prose
    assert "has only 50 examples: one answer is 2.0 points" in prose
    assert "All tokens of the answer, up to the end of the sequence, must be those of the reference." in prose
    assert prose.endswith("star-jax evaluate " + f"{tmp_path.name}/star/seed-0 --data FILE")
    assert f"star-jax predict {tmp_path.name}/star/seed-0 --out answers.csv" in prose


def test_when_nothing_was_right_the_page_says_where_to_look(tmp_path):
    for name in ("star", "random"):
        write_run(tmp_path, name, 0, [0.0, 0.0, 0.0])
    assert page.lead(read.read_runs(tmp_path)).startswith("No answer to a test example was right in any round.")
    assert len(read_page(tmp_path).tables["errors"]) > 1


def test_rounds_in_which_everything_was_skipped_are_no_error(tmp_path):
    """They have as many labels as the round before, and a curve has one point there."""
    for name in ("star", "random"):
        folder = write_run(tmp_path, name, 0, [0.3, 0.4, 0.6])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows[1] |= {"labelled": 60, "skipped": 50}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = read.read_runs(tmp_path)
    assert [run.area for run in runs] == [pytest.approx(0.5)] * 2  # from 0.4 to 0.6
    assert "100 examples that were picked were skipped" in read_page(tmp_path).prose


def test_costs_and_audits_of_labels_are_said(tmp_path):
    for seed in (0, 1):
        folder = write_run(tmp_path, "star", seed, [0.3, 0.4])
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows[0] |= {"label_cost": 1.5, "audited": 10, "audit_agreed": 9}
        rows[1] |= {"label_cost": 0.5, "audited": 10, "audit_agreed": 8}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prose = read_page(tmp_path).prose
    assert "The labels of star cost 2 so far, in the unit of the annotator (the mean of its runs)." in prose
    share = wilson([True] * 34 + [False] * 6)
    interval = f"{percent(share.low)} to {percent(share.high)}"
    said = f"the same 34 times: it agrees with them on {percent(0.85)} (95{PERCENT} interval {interval})"
    assert said.replace("\xa0", " ") in prose


def test_a_run_that_was_stopped_by_its_rule_says_so(tmp_path):
    folder = write_run(tmp_path, "star", 0, [0.3, 0.4])
    summary = json.loads((folder / "summary.json").read_text())
    reason = "accuracy is 0.4000, at least 0.4, after 2 rounds"
    (folder / "summary.json").write_text(json.dumps(summary | {"stopped": reason, "labelled": 110}))
    assert f"star seed 0 stopped early by loop.stop_when: {reason}." in read_page(tmp_path).prose


def test_names_of_any_script_are_on_the_page_and_in_no_picture(tmp_path):
    """Pictures have the fonts of the machine that drew them; a page has those of whoever reads it."""
    names = ("数学", "العربية", "हिन्दी", "Ελληνικά", "🙂", "a <b>", "$x^2$")
    folder = write_run(tmp_path, "策略", 0, [0.4, 0.5])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"picked_groups": dict.fromkeys(names, 3), "group_accuracy": dict.fromkeys(names, 0.5)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of every character that it draws as a box
        shown = read_page(tmp_path)
    assert all(shown.words.count(name) >= 2 for name in names)
    assert "策略" in shown.tables["headline"][1][0]


def test_curves_are_means_over_the_seeds_that_have_a_value(tmp_path):
    write_run(tmp_path, "star", 0, [0.2, 0.4])
    write_run(tmp_path, "star", 1, [0.4, 0.8, 0.9])
    runs = read.read_runs(tmp_path)
    points = read.curve(runs, "accuracy")
    assert points.x == [60, 110, 160]
    assert points.mean == pytest.approx([0.3, 0.6, 0.9])
    assert points.sd == pytest.approx([statistics.stdev([0.2, 0.4]), statistics.stdev([0.4, 0.8]), 0])
    assert read.curve(runs, "score_length_correlation", "round").x == [1, 2]
    assert read.mean_of_groups([{"a": 1, "b": 2}, None, {"a": 3}], missing=0) == {"a": 2, "b": 1}
    assert read.mean_of_groups([{"a": 1, "b": 2}, {"a": 3}]) == {"a": 2, "b": 2}


def test_a_strategy_keeps_its_look_and_no_two_share_one():
    names = [f"s{index}" for index in range(20)]
    look = looks([*names, "random"])
    assert look["random"].colour == GREY
    assert len(set(look.values())) == 21
    assert GREY not in {look[name].colour for name in names}
    assert figures.largest_groups([{"a": 1, "b": 3}, {"c": 3, "a": 1}]) == ["b", "c", "a"]


def test_users_errors_are_one_sentence_and_exit_code_2(tmp_path, capsys):
    with pytest.raises(ConfigError, match="holds no runs"):
        page.build_report(tmp_path / "nowhere")
    assert guarded_main(main, [str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "holds no runs" in captured.err
    with RunFolder.open(tmp_path, "star", 0, {}, device="cpu") as folder:
        assert guarded_main(main, [str(tmp_path)]) == 2
        assert "none has finished a round" in capsys.readouterr().err
        (folder.path / "metrics.jsonl").write_text(json.dumps({"round": 0}) + "\n")
        with pytest.raises(DataError, match="line 1 has no field 'labelled'"):
            page.build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_command_prints_the_path_and_never_loads_jax(tmp_path):
    write_run(tmp_path, "star", 0, [0.3, 0.5])
    program = (
        "import runpy, sys\n"
        "sys.argv = ['report', sys.argv[1]]\n"
        "try:\n"
        "    runpy.run_module('star_jax.report', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as exit:\n"
        "    assert exit.code == 0, exit.code\n"
        "assert 'jax' not in sys.modules\n"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert answer.stderr == ""
    assert answer.stdout.strip() == str(tmp_path / "report.html")
