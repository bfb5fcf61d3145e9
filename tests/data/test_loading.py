"""Reading files and hub data sets, what is said of a row that will not do, and the draws of the limits."""

import csv
import json
import subprocess
import sys

import datasets
import pytest

from star_jax.config import ConfigError, DataConfig
from star_jax.data.examples import DataError, Example, Prompt
from star_jax.data.loading import LoadedData, load_examples, load_pool_and_test, load_prompts, load_rows
from star_jax.data.tasks import get_task

GSM8K = get_task("gsm8k")
BOOLQ = get_task("boolq")
OPENBOOKQA = get_task("openbookqa")


def gsm8k_rows(count, offset=0):
    return [
        {"question": f"What is {i} plus 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(offset, offset + count)
    ]


def write_lines(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return str(path)


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def write_parquet(path, rows):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


# Formats


def test_jsonl_rows_carry_line_numbers_and_blank_lines_count(tmp_path):
    first, second = gsm8k_rows(2)
    source = write_lines(tmp_path / "data.jsonl", first, "", "  ", second)
    assert list(load_rows(source, "train")) == [(1, first), (4, second)]


def test_jsonl_may_begin_with_a_byte_order_mark_and_end_without_a_line_break(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a\xe2\x80\xa8b"}\r\n{"question": "c"}')
    assert list(load_rows(str(path), "train")) == [(1, {"question": "a\u2028b"}), (2, {"question": "c"})]


def test_csv_rows_carry_the_line_they_begin_on(tmp_path):
    source = write_csv(tmp_path / "data.csv", gsm8k_rows(3))
    # Every answer has a line break in it.
    assert [number for number, _ in load_rows(source, "train")] == [2, 4, 6]
    assert [row for _, row in load_rows(source, "train")] == gsm8k_rows(3)


def test_all_formats_give_the_same_examples(tmp_path):
    rows = [{"id": f"q{i}", **row} for i, row in enumerate(gsm8k_rows(5))]
    expected = [Example(Prompt(row["id"], GSM8K.prompt(row)), GSM8K.response(row)) for row in rows]
    sources = [
        write_lines(tmp_path / "data.jsonl", *rows),
        write_lines(tmp_path / "data.json", *rows),
        write_csv(tmp_path / "data.CSV", rows),
        write_parquet(tmp_path / "data [1].parquet", rows),
    ]
    for source in sources:
        assert load_examples(GSM8K, source, "train") == expected
        assert load_prompts(GSM8K, source, "train") == [example.prompt for example in expected]


def test_parquet_keeps_bools_and_nested_choices(tmp_path):
    question = {"question": "can fish fly in water", "passage": "Some glide.", "answer": False}
    [example] = load_examples(get_task("boolq_passage"), write_parquet(tmp_path / "b.parquet", [question]), "train")
    assert example.response == "the correct answer is false"
    assert example.prompt.text.startswith("Passage: Some glide.\n\nPlease answer")
    choices = {"text": ["light", "water", "sound", "heat"], "label": ["A", "B", "C", "D"]}
    row = {"id": "7-1", "question_stem": "A lamp gives", "choices": choices, "answerKey": "A"}
    [example] = load_examples(OPENBOOKQA, write_parquet(tmp_path / "o.parquet", [row]), "train")
    assert example == Example(Prompt("7-1", OPENBOOKQA.prompt(row)), " A")


def test_hub_names_go_to_the_hub_with_config_and_split(monkeypatch):
    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        return gsm8k_rows(2)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_rows("openai/gsm8k:main", "test")) == list(enumerate(gsm8k_rows(2), start=1))
    assert [prompt.id for prompt in load_prompts(GSM8K, "openai/gsm8k:main", "test")] == [
        "gsm8k-test-000001",
        "gsm8k-test-000002",
    ]
    assert load_prompts(BOOLQ, "google/boolq@validation", "test")[1].id == "boolq-validation-000002"
    load_prompts(BOOLQ, "boolq", "train")
    assert calls == [
        ("openai/gsm8k", "main", "test"),
        ("openai/gsm8k", "main", "test"),
        ("google/boolq", None, "validation"),
        ("boolq", None, "train"),
    ]


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'google/boolq' on the Hub.\nTraceback of the client")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as info:
        list(load_rows("google/boolq", "train"))
    assert str(info.value) == (
        "google/boolq: is no file here, and cannot be loaded from the hub (Couldn't reach 'google/boolq' on the Hub); "
        "check the name (NAME[:CONFIG][@SPLIT]) and the connection, or give a local file"
    )


def test_a_bad_row_of_the_hub_is_named_by_its_number(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: [*gsm8k_rows(1), {"answer": "#### 1"}])
    with pytest.raises(DataError, match=r"^openai/gsm8k:main, row 2: field 'question' is missing"):
        load_examples(GSM8K, "openai/gsm8k:main", "train")


def test_importing_the_module_does_not_import_datasets():
    code = "import sys, star_jax.data.loading; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Errors


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 2: is not valid JSON \\(.*\\); write one object a line"),
        (['["question", "answer"]'], "line 2: is a list, not an object; write one object a line"),
        ([{"answer": "#### 1"}], "line 2: field 'question' is missing \\(the row has answer\\); fill it in"),
        ([{"question": "How many?"}], "line 2: the row has no response; label it"),
        ([{"question": "How many?", "answer": None}], "line 2: the row has no response"),
        ([{"question": "How many?", "answer": 3}], "line 2: field 'answer' is 3; it must be a string"),
        ([{"question": "", "answer": "#### 1"}], "line 2: field 'question' is empty"),
        (["", {"question": 1, "answer": "#### 1"}], "line 3: field 'question' is 1; it must be a string"),
        ([{"id": True, **gsm8k_rows(1)[0]}], "line 2: field 'id' is True; it must be a number or a text"),
        ([{"id": " ", **gsm8k_rows(1)[0]}], "line 2: field 'id' is ' '; it must be"),
        ([{"id": "data-000001", **gsm8k_rows(1)[0]}], "line 2: id 'data-000001' is already that of line 1; make ids"),
    ],
)
def test_bad_jsonl_rows_are_named_by_file_and_line(tmp_path, lines, message):
    source = write_lines(tmp_path / "data.jsonl", *gsm8k_rows(1), *lines)
    with pytest.raises(DataError, match=f"^{source}, {message}"):
        load_examples(GSM8K, source, "train")


def test_prompts_do_not_need_a_response_and_do_not_look_at_one(tmp_path):
    rows = [{"question": "How many?"}, {"question": "How far?", "answer": 3}]
    prompts = load_prompts(GSM8K, write_lines(tmp_path / "data.jsonl", *rows), "train")
    assert prompts == [Prompt(f"data-{i:06d}", GSM8K.prompt(row)) for i, row in enumerate(rows, start=1)]


def test_text_that_is_not_utf8_is_an_error(tmp_path):
    for name, message in (("data.jsonl", ", line 2: is not UTF-8"), ("data.csv", ": is not UTF-8")):
        path = tmp_path / name
        path.write_bytes(b'{"question": "a"}\n{"question": "\xff"}\n')
        with pytest.raises(DataError, match=f"^{path}{message}"):
            list(load_rows(str(path), "train"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\na,#### 1\nb\n", ", line 3: has 1 cells where the header has 2; quote a cell"),
        ("question,answer\na,#### 1\nb,c,#### 1\n", ", line 3: has 3 cells where the header has 2"),
        ('question,answer\na,#### 1\n\n"b,#### 1\n', ", line 4: is not valid CSV \\(unexpected end of data\\)"),
        ("question,answer\n", ": holds no rows"),
        ("", ": holds no rows"),
        ("answer\n#### 1\n", ", line 2: field 'question' is missing"),
        ("question,answer\na,\n", ", line 2: the row has no response"),
    ],
)
def test_bad_csv_files_are_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "data.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=f"^{path}{message}"):
        load_examples(GSM8K, str(path), "train")


def test_sources_that_cannot_be_read_at_all(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "notes.txt").write_text("question", "utf-8")
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in {
        "missing.jsonl": "there is no such file; check the path",
        "folder.jsonl": "there is no such file",
        "empty.jsonl": "holds no rows; it needs at least one",
        "broken.parquet": "is not a valid Parquet file",
        "notes.txt": "no format is known by this name; use a file that ends in .jsonl, .json, .csv, .parquet",
        "no/such/folder": "is neither a file nor a hub name",
    }.items():
        with pytest.raises(DataError, match=f"^{tmp_path / name}: {message}"):
            list(load_rows(str(tmp_path / name), "train"))


# Pool and test set


@pytest.fixture
def config(tmp_path):
    train = write_lines(tmp_path / "train.jsonl", *gsm8k_rows(30))
    test = write_lines(tmp_path / "test.jsonl", *gsm8k_rows(20, offset=25))
    return {"task": "gsm8k", "train": train, "test": test}


def ids(examples):
    return [example.id for example in examples]


def test_pool_and_test_are_sorted_by_id_whatever_the_order_of_the_file(tmp_path, config):
    rows = [{"id": f"q{i:02d}", **row} for i, row in enumerate(gsm8k_rows(9))]
    results = []
    for order in (rows, rows[::-1]):
        source = write_lines(tmp_path / "shuffled.jsonl", *order)
        results.append(load_pool_and_test(DataConfig(**config | {"train": source}, pool_limit=5), seed=3))
    assert results[0] == results[1]
    assert ids(results[0].pool) == sorted(ids(results[0].pool))
    assert len(results[0].pool) == 5


def test_limits_draw_the_pool_by_the_seed_and_the_test_set_by_none(config):
    runs = [load_pool_and_test(DataConfig(**config, pool_limit=12, test_limit=7), seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].pool != runs[2].pool
    assert runs[0].test == runs[2].test
    everything = load_pool_and_test(DataConfig(**config), seed=0)
    for run in runs:
        assert (len(run.pool), len(run.test)) == (12, 7)
        assert set(run.pool) < set(everything.pool)
        assert set(run.test) < set(everything.test)
    assert ids(everything.test) == [f"test-{i:06d}" for i in range(1, 21)]


def test_a_larger_limit_adds_to_the_draw_and_one_over_the_size_takes_all(config):
    pools = [load_pool_and_test(DataConfig(**config, pool_limit=limit), 5).pool for limit in (4, 8, 30, 99)]
    assert set(pools[0]) < set(pools[1])
    assert pools[2] == pools[3] == load_pool_and_test(DataConfig(**config), 0).pool


def test_draws_differ_over_seeds_so_that_every_example_comes_up(config):
    drawn = [set(ids(load_pool_and_test(DataConfig(**config, pool_limit=10), seed).pool)) for seed in range(20)]
    assert len(set().union(*drawn)) == 30


def test_duplicates_are_kept_and_counted(tmp_path, config):
    rows = [*gsm8k_rows(30), *gsm8k_rows(2), *gsm8k_rows(1)]
    source = write_lines(tmp_path / "twice.jsonl", *rows)
    loaded = load_pool_and_test(DataConfig(**config | {"train": source}), seed=0)
    assert isinstance(loaded, LoadedData)
    assert len(loaded.pool) == 33
    assert loaded.duplicate_prompts == 3
    # Rows 25 to 29 are in both files.
    assert loaded.test_overlap == 5


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("task", ["gsm8k", "skills"])
def test_both_sources_are_needed(config, task, name):
    with pytest.raises(ConfigError, match=f"^data.{name} is not set; task {task} needs both data.train and data.test"):
        load_pool_and_test(DataConfig(**config | {"task": task, name: None}), seed=0)


def test_an_unknown_task_is_a_config_error():
    with pytest.raises(ConfigError, match=r"data\.task is 'gsm9k'"):
        load_pool_and_test(DataConfig(task="gsm9k"), seed=0)


def test_skills_generates_its_own_data():
    config = DataConfig(task="skills", regime="R0", pool_size=50, pool_limit=40, test_limit=30)
    loaded = load_pool_and_test(config, seed=1)
    assert (len(loaded.pool), len(loaded.test)) == (40, 30)
    assert (loaded.duplicate_prompts, loaded.test_overlap) == (0, 0)
    assert ids(loaded.pool) == sorted(ids(loaded.pool))
    assert ids(loaded.test) == sorted(ids(loaded.test))
    assert loaded.pool != load_pool_and_test(config, seed=2).pool
    assert loaded.test == load_pool_and_test(config, seed=2).test
