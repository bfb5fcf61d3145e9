"""A person's own files through both commands: configs/own_data.yaml, and flags where they differ from it."""

import csv
import json
from pathlib import Path

import pytest
from seeds import seed_of

from star_jax.acquisition import pools
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints import huggingface
from star_jax.cli import run, score
from star_jax.cli.guard import guarded_main
from star_jax.experiment import setup
from star_jax.training import trainer

CONFIG = Path(__file__).parent.parent / "configs" / "own_data.yaml"


@pytest.fixture(autouse=True)
def _one_shape(monkeypatch):
    """Of each kind of batch, which is a program less to compile in every run; several are for other tests of runs."""
    for name in ("PROMPT_SHAPES", "SEQUENCE_SHAPES", "CANDIDATE_SHAPES"):
        monkeypatch.setattr(pools, name, 1)
    monkeypatch.setattr(trainer, "STEP_SHAPES", 1)


def write(path, examples, labelled):
    """A CSV file of columns question, label and kind; rows from `labelled` on have no label."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "label", "kind"])
        for number, example in enumerate(examples):
            label = example.response if number < labelled else ""
            writer.writerow([example.prompt.text, label, skills.skill_of(example.prompt.text)])


@pytest.fixture(scope="module")
def files(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    seed = seed_of(request)
    pool = skills.pool_examples("R1", seed, 24)
    write(folder / "pool.csv", pool, 24)
    write(folder / "open.csv", pool, 15)
    write(folder / "test.csv", skills.test_examples()[::40], 99)
    return folder


def flags(folder, *extra, pool="pool.csv"):
    """What the shipped file leaves open, for the model that ships with the package."""
    return [
        *("--config", str(CONFIG), "--model.path", "embedded:skills", "--output-dir", str(folder / "out")),
        *("--data.train", str(folder / pool), "--data.test", str(folder / "test.csv")),
        *("--format.prompt", "{{ question }} ", "--format.group", "kind", "--strategies", "random"),
        *(
            "--data.max-prompt-tokens",
            "9",
            "--data.max-response-tokens",
            "6",
            "--lora.rank",
            "2",
            "--lora.targets",
            "v_proj",
        ),
        *("--loop.initial-labels", "8", "--loop.labels-per-round", "4", "--loop.rounds", "2", *extra),
    ]


def test_the_shipped_file_is_short_and_has_no_code():
    lines = CONFIG.read_text().splitlines()
    assert len(lines) <= 25


def test_a_csv_file_runs_and_bad_rows_and_cuts_are_in_the_summary(files, caplog):
    broken = files / "broken.csv"
    broken.write_text((files / "pool.csv").read_text() + "only one cell\n,4 1 3,rev\n")
    limits = ("--data.max-response-tokens", "4", "--data.too-long", "truncate-left", "--data.on-bad-row", "skip")
    assert run.main(flags(files, *limits, pool="broken.csv")) == 0
    assert f"{broken}: 2 of 26 rows cannot be used and are left out: line 26: has 1 cells" in caplog.text
    folder = files / "out" / "random" / "seed-0"
    files_of_rounds = sorted(folder.glob("rounds/*/queried.jsonl"))
    rows = [json.loads(line) for path in files_of_rounds for line in path.read_text().splitlines()]
    with (files / "pool.csv").open() as file:
        truth = {row["question"]: row for row in csv.DictReader(file)}
    assert len({row["id"] for row in rows}) == 12
    groups = {row["kind"] for row in truth.values()}
    assert {row["group"] for row in rows} <= groups
    assert all(row["response"].startswith(" ") for row in rows)
    counts = json.loads((folder / "summary.json").read_text())["data"]
    facts = json.loads((folder / "data.json").read_text())
    assert counts == {name: value for name, value in facts.items() if isinstance(value, int)}
    cut = sum(len(row["label"].split()) + 1 > 4 for row in truth.values())
    assert (counts["pool_bad_rows"], counts["pool_examples"], counts["pool_responses_cut"]) == (2, 24, cut)
    assert (counts["pool_unlabelled"], counts["left_out_of_pool"], counts["pool_prompts_cut"]) == (0, 0, 0)


def test_gold_answers_need_a_labelled_pool(files, capfd, tmp_path):
    argv = flags(files, "--scoring.answers", "reference", "--output-dir", str(tmp_path), pool="open.csv")
    assert guarded_main(run.main, argv) == 2
    error = capfd.readouterr().err
    assert f"9 of 24 pool rows in {files / 'open.csv'} have no response" in error
    assert "scoring.answers is reference" in error
    assert not list(tmp_path.iterdir())


def scored(files, *extra):
    out = files / "scores.jsonl"
    argv = ["--config", str(CONFIG), "--model", "embedded:skills", "--data", str(files / "open.csv"), "--out", str(out)]
    limits = ["--max-prompt-tokens", "9", "--max-response-tokens", "6", "--format.prompt", "{{ question }} "]
    assert score.main([*argv, *limits, *extra]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_an_unlabelled_file_is_scored(files):
    with (files / "open.csv").open() as file:
        questions = [row["question"] for row in csv.DictReader(file)]
    rows = scored(files)
    assert [row["id"] for row in rows] == [f"open-{number:06d}" for number in range(2, len(questions) + 2)]
    known = [(row["response"], skills.solve(q)) for row, q in zip(rows, questions, strict=True) if q.startswith("rev ")]
    assert all(ours == theirs for ours, theirs in known)


def test_closed_answers_make_candidates_without_code(files):
    rows = scored(files, "--answers", "candidates", "--format.answers", "T,F", "--format.response", "{{ none }}")
    assert {row["response"] for row in rows} <= {" T", " F"}
    assert all(row["response_tokens"] == 1 for row in rows)


def fill_in(table, truth):
    """What a person does with the table: every empty response gets its label. How many were empty."""
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    empty = [row for row in rows if not row["response"]]
    for row in empty:
        row["response"] = truth[row["prompt"]]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
    return len(empty)


def test_a_person_labels_what_the_pool_does_not_have(files, tmp_path, capfd):
    """The run waits for a person each round, and ends as one whose pool had all labels from the start."""
    with (files / "pool.csv").open() as file:
        truth = {row["question"]: row["label"] for row in csv.DictReader(file)}
    (tmp_path / "pool.csv").write_text("\n".join(["question", *(question for question in truth)]) + "\n")
    (tmp_path / "test.csv").write_text((files / "test.csv").read_text())
    held_out = ("--training.validation-fraction", "0.3", "--strategies", "entropy")
    argv = flags(tmp_path, *held_out)
    argv[argv.index("--format.group") + 1] = "question"
    argv[argv.index("--data.train") + 1] = str(tmp_path / "pool.csv")
    folder = tmp_path / "out" / "entropy" / "seed-0"
    asked = []
    while (code := guarded_main(run.main, argv)) == 3:
        said, shown = capfd.readouterr()
        assert ("score: " in shown) == bool(asked)
        # What was chosen is kept: asking again scores nothing again.
        assert guarded_main(run.main, argv) == 3
        again = capfd.readouterr()
        assert (again.out, "score: " in again.err) == (said, False)
        asked.append(fill_in(tmp_path / "out" / "labels.csv", truth))
        assert f"{asked[-1]} examples need a label" in said
        assert str(tmp_path / "out" / "labels.csv") in said
    assert (code, asked) == (0, [8, 4])

    argv[argv.index("--data.train") + 1] = str(files / "pool.csv")
    argv[argv.index("--output-dir") + 1] = str(tmp_path / "known")
    assert guarded_main(run.main, argv) == 0
    for number in ("000", "001"):
        ours, theirs = (
            [json.loads(line) for line in (place / "rounds" / number / "queried.jsonl").read_text().splitlines()]
            for place in (folder, tmp_path / "known" / "entropy" / "seed-0")
        )
        assert ours == theirs
    measured = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["labelled"] for row in measured] == [8, 12]
    assert all(0 < row["validation_examples"] < row["labelled"] for row in measured)
    assert all(0 <= row["validation_accuracy"] <= 1 and row["validation_nll"] > 0 for row in measured)


def test_a_wrong_label_is_named_by_its_line(files, tmp_path, capfd):
    argv = flags(tmp_path, "--format.answers", "T,F", "--format.match", "choice", pool="none.csv")
    (tmp_path / "none.csv").write_text(
        "question,kind\n" + "".join(f"max {a} {b} =,max\n" for a in "1234" for b in "567")
    )
    (tmp_path / "test.csv").write_text("question,label,kind\nmax 1 2 =,T,max\n")
    assert guarded_main(run.main, argv) == 3
    table = tmp_path / "out" / "labels.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:3], lines[3].removesuffix('""') + "maybe", *lines[4:]]) + "\n")
    capfd.readouterr()
    assert guarded_main(run.main, argv) == 2
    assert f"{table}, line 4: the response is 'maybe'; expected one of T, F" in capfd.readouterr().err


def test_seeds_that_draw_different_pools_share_the_table(files, tmp_path, capfd):
    """What one seed asks for is no unknown row to the other, and nothing is asked twice."""
    (tmp_path / "pool.csv").write_text("question,kind\n" + "".join(f"max {n // 9} {n % 9} =,max\n" for n in range(40)))
    (tmp_path / "test.csv").write_text("question,label,kind\nmax 1 2 =,2,max\n")
    argv = flags(tmp_path, "--seeds", "0,1", "--data.pool-limit", "13", "--loop.initial-labels", "9")
    said = []
    for _ in range(2):
        assert guarded_main(run.main, argv) == 3
        said.append(capfd.readouterr().out.splitlines()[-1])
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert len(ids) == len(set(ids)) > 13
    assert f"{len(ids)} examples need a label" in said[0]
    assert said[0] == said[1]


def test_a_choice_made_with_other_settings_is_forgotten(files, tmp_path, capfd):
    (tmp_path / "pool.csv").write_text("question,kind\n" + "".join(f"max {n // 9} {n % 9} =,max\n" for n in range(40)))
    (tmp_path / "test.csv").write_text("question,label,kind\nmax 1 2 =,2,max\n")
    for labels in ("8", "5"):
        assert guarded_main(run.main, flags(tmp_path, "--loop.initial-labels", labels)) == 3
    fill_in(tmp_path / "out" / "labels.csv", {f"max {n // 9} {n % 9} =": str(max(n // 9, n % 9)) for n in range(40)})
    assert guarded_main(run.main, flags(tmp_path, "--loop.initial-labels", "5")) == 3
    assert (
        len((tmp_path / "out" / "random" / "seed-0" / "rounds" / "000" / "queried.jsonl").read_text().splitlines()) == 5
    )


@pytest.fixture
def unlabelled(tmp_path):
    """A pool that nobody has labelled, its test set, and the flags of a run on them."""
    questions = [f"max {n // 9} {n % 9} =" for n in range(40)]
    (tmp_path / "pool.csv").write_text("question,kind\n" + "".join(f"{text},max\n" for text in questions))
    (tmp_path / "test.csv").write_text("question,label,kind\nmax 1 2 =,2,max\nmax 7 2 =,7,max\n")
    argv = flags(tmp_path)
    place = argv.index("--strategies")
    return argv[:place] + argv[place + 2 :], {text: str(max(map(int, text.split()[1:3]))) for text in questions}


def test_a_pool_without_labels_is_star_alone_and_says_first_what_it_asks_for(unlabelled, tmp_path, capfd):
    argv, _ = unlabelled
    assert guarded_main(run.main, argv) == 3
    said, shown = capfd.readouterr()
    first = "asks for at most 12 labels altogether, for star (8 + 1 x 4 a run); --strategies star,random compares and"
    assert shown.splitlines()[0].endswith(f"{first} asks for at most 16")
    assert "8 examples need a label, for star: write it" in said
    assert [path.name for path in (tmp_path / "out").glob("*/seed-0")] == ["seed-0"]
    assert (tmp_path / "out" / "star").is_dir()
    # Whoever wants the comparison has it.
    assert guarded_main(run.main, [*argv, "--strategies", "star,random"]) == 3
    assert "asks for at most 16 labels altogether, for star, random" in capfd.readouterr().err


def test_what_a_person_skips_is_replaced_and_counted(unlabelled, tmp_path, capfd):
    """In both rounds, two of them at first and one of what stands in for them."""
    argv, truth = unlabelled
    argv += ["--strategies", "entropy", "--labels.skip", "cannot", "--labels.columns", "kind"]
    table = tmp_path / "out" / "labels.csv"
    skips, asked = {0: " Cannot ", 3: "CANNOT", 8: "cannot"}, []
    while (code := guarded_main(run.main, argv)) == 3:
        style = {"encoding": "utf-16", "delimiter": "\t"} if asked else {"encoding": "utf-8-sig", "delimiter": ","}
        with table.open(newline="", encoding=style["encoding"]) as file:
            header, *rows = csv.reader(file, delimiter=style["delimiter"])
        asked.append(len(rows))
        assert f"{sum(not row[2] for row in rows)} examples need a label" in capfd.readouterr().out
        rows = [[*row[:2], row[2] or skips.get(place, truth[row[1]]), row[3]] for place, row in enumerate(rows)]
        with table.open("w", newline="", encoding="utf-16") as file:
            csv.writer(file, delimiter="\t").writerows([header, *rows])
    assert (code, asked) == (0, [8, 10, 11, 15])
    folder = tmp_path / "out" / "entropy" / "seed-0"
    measured = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["labelled"], row.get("skipped")) for row in measured] == [(8, 3), (12, None)]
    queried = [json.loads(line) for line in (folder / "rounds" / "000" / "queried.jsonl").read_text().splitlines()]
    assert [row["rank"] for row in queried if row.get("skipped")] == [0, 3, 8]
    assert all((row["response"] is None) is bool(row.get("skipped")) for row in queried)
    assert json.loads((folder / "summary.json").read_text())["skipped"] == 3
    table_shown = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["strategy", "seeds", "labels", "skipped", "accuracy", "ECE", "AUBC"] in table_shown
    assert any(line[:4] == ["entropy", "1", "12", "3"] for line in table_shown)


@pytest.mark.parametrize("which", ["pool", "test", "table"])
def test_files_are_refused_before_the_model_is_loaded_with_all_that_is_wrong(
    unlabelled, tmp_path, capfd, monkeypatch, which
):
    argv, _ = unlabelled
    assert guarded_main(run.main, argv) == 3
    table = tmp_path / "out" / "labels.csv"
    file = {"pool": tmp_path / "pool.csv", "test": tmp_path / "test.csv", "table": table}[which]
    lines = file.read_text("utf-8-sig").splitlines()
    wrong = {"pool": ",max", "test": "max 1 2 =,,max", "table": '"unknown","?","1"'}[which]
    file.write_text("\n".join([lines[0], wrong, lines[1], wrong, *lines[2:]]) + "\n")
    before = file.read_bytes()
    capfd.readouterr()

    def loaded(*arguments, **options):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(setup, "load_folder", loaded)
    assert guarded_main(run.main, argv) == 2
    error = capfd.readouterr().err
    assert f"star_jax: error: {file}, line 2: " in error
    assert "(likewise line 4)" in error
    assert file.read_bytes() == before


def test_a_file_to_score_is_refused_before_the_model_is_loaded(tmp_path, capfd, monkeypatch):
    def loaded(*arguments, **options):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(huggingface, "load_folder", loaded)
    (tmp_path / "pool.csv").write_text("sep=;\nquestion;kind\n;a\nmax 1 2 =;b\n;c\n")
    argv = ["--model", "embedded:skills", "--data", str(tmp_path / "pool.csv"), "--task", "generic"]
    assert guarded_main(score.main, [*argv, "--format.prompt", "{{ question }} "]) == 2
    error = capfd.readouterr().err
    assert "pool.csv, line 3 (row 2 of the spreadsheet): field 'question' is empty" in error
    assert "(likewise line 5 (row 4 of the spreadsheet))" in error


def test_a_simulated_annotator_errs_skips_and_costs(files, tmp_path):
    noise = ("--annotator", "simulated", "--simulated.error-rate", "0.5", "--simulated.skip-rate", "0.2")
    argv = flags(files, *noise, "--simulated.cost", "0.25", "--output-dir", str(tmp_path))
    assert run.main(argv) == 0
    folder = tmp_path / "random" / "seed-0"
    with (files / "pool.csv").open() as file:
        truth = {row["question"]: row["label"] for row in csv.DictReader(file)}
    measured = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wrong = 0
    for row in measured:
        queried = folder / "rounds" / f"{row['round']:03d}" / "queried.jsonl"
        answers = [json.loads(line) for line in queried.read_text().splitlines()]
        assert [one["cost"] for one in answers] == [0.25] * len(answers)
        assert row["label_cost"] == 0.25 * len(answers)
        assert sum(one["response"] is None for one in answers) == row.get("skipped", 0)
        wrong += sum(one["response"] not in (None, f" {truth[one['prompt'].strip()]}") for one in answers)
    assert [row["labelled"] for row in measured] == [8, 12]
    assert 0 < wrong < 12
