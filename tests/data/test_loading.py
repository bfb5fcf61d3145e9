"""Rows to prompts and labels, what is said or counted of a row that will not do, and the draws of the limits."""

import logging

import datasets
import pytest
from data_files import gsm8k_rows, write_csv, write_lines, write_parquet

from star_jax.config import DataConfig, FormatConfig, LabelsConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.loading import LoadedData, load_examples, load_pool, load_pool_and_test, load_prompts
from star_jax.data.readers import read_rows
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError, DataError

GSM8K = get_task("gsm8k")
BOOLQ = get_task("boolq")
OPENBOOKQA = get_task("openbookqa")


# Formats


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
    assert list(read_rows("openai/gsm8k:main", "test")) == list(enumerate(gsm8k_rows(2), start=1))
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


def test_a_bad_row_of_the_hub_is_named_by_its_number(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: [*gsm8k_rows(1), {"answer": "#### 1"}])
    with pytest.raises(DataError, match=r"^openai/gsm8k:main, row 2: field 'question' is missing"):
        load_examples(GSM8K, "openai/gsm8k:main", "train")


# Errors


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], "line 2: is not valid JSON \\(.*\\); write one object a line"),
        (['["question", "answer"]'], "line 2: is a list, not an object; write one object a line"),
        ([{"answer": "#### 1"}], "line 2: field 'question' is missing \\(the row has answer\\); fill it in"),
        (
            [{"question": "How many?"}],
            "line 2: the row has no response \\(it has question\\); label it, or leave it out",
        ),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\na,#### 1\nb\n", ", line 3: has 1 cells where the header has 2; quote a cell"),
        ("question,answer\na,#### 1\nb,c,#### 1\n", ", line 3: has 3 cells where the header has 2"),
        ("answer\n#### 1\n", ", line 2: field 'question' is missing"),
        ("question,answer\na,\n", ", line 2: the row has no response"),
    ],
)
def test_bad_csv_files_are_named_by_file_and_line(tmp_path, text, message):
    path = tmp_path / "data.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=f"^{path}{message}"):
        load_examples(GSM8K, str(path), "train")


@pytest.mark.parametrize(
    ("value", "name"), [(1.0, "1"), (12, "12"), (-3.0, "-3"), ("1.0", "1.0"), (1e20, "1" + "0" * 20)]
)
def test_ids_that_are_whole_numbers_have_no_fraction(tmp_path, value, name):
    source = write_parquet(tmp_path / "data.parquet", [{"id": value, **gsm8k_rows(1)[0]}])
    assert ids(load_examples(GSM8K, source, "train")) == [name]


@pytest.mark.parametrize("value", [1.5, float("nan"), float("inf")])
def test_ids_that_are_other_fractions_are_refused(tmp_path, value):
    source = write_parquet(tmp_path / "data.parquet", [{"id": value, **gsm8k_rows(1)[0]}])
    with pytest.raises(DataError, match=rf"row 1: field 'id' is {value}; it must be a number or a text"):
        load_examples(GSM8K, source, "train")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_bad_rows_are_left_out_counted_and_shown_where_that_is_asked_for(tmp_path, caplog, ending):
    good = [{"id": f"g{i}", **row} for i, row in enumerate(gsm8k_rows(4))]
    bad = [{"id": f"b{i}", "question": "", "answer": "#### 1"} for i in range(3)]
    rows = [*good[:2], *bad, good[0] | {"question": "again?"}, *good[2:], good[1] | {"id": "b0"}]
    source = str(tmp_path / f"data{ending}")
    {".jsonl": lambda path, rows: write_lines(path, *rows), ".csv": write_csv, ".parquet": write_parquet}[ending](
        tmp_path / f"data{ending}", rows
    )
    with caplog.at_level(logging.WARNING):
        examples = load_examples(GSM8K, source, "train", "skip")
        prompts = load_prompts(GSM8K, source, "train", "skip")
    # A row that will not do takes no id away from one that comes later.
    assert ids(examples) == [prompt.id for prompt in prompts] == ["g0", "g1", "g2", "g3", "b0"]
    assert len(caplog.records) == 2
    message = caplog.records[0].getMessage()
    assert message.startswith(f"{source}: 4 of 9 rows cannot be used and are left out: ")
    assert message.count("field 'question' is empty") == 3
    assert message.endswith("; and 1 more")
    with pytest.raises(DataError, match="field 'question' is empty"):
        load_examples(GSM8K, source, "train")


def test_a_source_without_one_usable_row_is_an_error_either_way(tmp_path):
    source = write_lines(tmp_path / "data.jsonl", "{", {"question": " "})
    for load in (load_examples, load_prompts):
        with pytest.raises(DataError, match=f"^{source}: none of its 2 rows can be used; the first: line 1: is not"):
            load(GSM8K, source, "train", "skip")


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
        results.append(load_pool_and_test(DataConfig(**config | {"train": source}, pool_limit=5), GSM8K, seed=3))
    assert results[0] == results[1]
    assert ids(results[0].pool) == sorted(ids(results[0].pool))
    assert len(results[0].pool) == 5


def test_limits_draw_the_pool_by_the_seed_and_the_test_set_by_none(config):
    runs = [load_pool_and_test(DataConfig(**config, pool_limit=12, test_limit=7), GSM8K, seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0].pool != runs[2].pool
    assert runs[0].test == runs[2].test
    everything = load_pool_and_test(DataConfig(**config), GSM8K, seed=0)
    for run in runs:
        assert (len(run.pool), len(run.test)) == (12, 7)
        assert set(run.pool) < set(everything.pool)
        assert set(run.test) < set(everything.test)
    assert ids(everything.test) == [f"test-{i:06d}" for i in range(1, 21)]


def test_a_larger_limit_adds_to_the_draw_and_one_over_the_size_takes_all(config):
    pools = [load_pool_and_test(DataConfig(**config, pool_limit=limit), GSM8K, 5).pool for limit in (4, 8, 30, 99)]
    assert set(pools[0]) < set(pools[1])
    assert pools[2] == pools[3] == load_pool_and_test(DataConfig(**config), GSM8K, 0).pool


def test_draws_differ_over_seeds_so_that_every_example_comes_up(config):
    drawn = [set(ids(load_pool_and_test(DataConfig(**config, pool_limit=10), GSM8K, seed).pool)) for seed in range(20)]
    assert len(set().union(*drawn)) == 30


def test_duplicates_are_kept_and_counted(tmp_path, config):
    rows = [*gsm8k_rows(30), *gsm8k_rows(2), *gsm8k_rows(1)]
    source = write_lines(tmp_path / "twice.jsonl", *rows)
    loaded = load_pool_and_test(DataConfig(**config | {"train": source}), GSM8K, seed=0)
    assert isinstance(loaded, LoadedData)
    assert len(loaded.pool) == 33
    assert loaded.duplicate_prompts == 3
    # Rows 25 to 29 are in both files.
    assert loaded.test_overlap == 5


@pytest.mark.parametrize("every", [1, 3])
def test_a_pool_may_be_unlabelled(tmp_path, config, every):
    """Every third row has a label; or there is no such column at all."""
    rows = [row if every == 3 and i % 3 == 0 else {"question": row["question"]} for i, row in enumerate(gsm8k_rows(9))]
    source = write_lines(tmp_path / "open.jsonl", *rows)
    loaded = load_pool_and_test(DataConfig(**config | {"train": source}), GSM8K, seed=0)
    assert [prompt.text for prompt in loaded.pool] == [GSM8K.prompt(row) for row in rows]
    assert loaded.labels == {
        f"open-{i + 1:06d}": GSM8K.response(row) for i, row in enumerate(rows) if GSM8K.response(row) is not None
    }
    drawn = load_pool_and_test(DataConfig(**config | {"train": source}, pool_limit=4), GSM8K, seed=0)
    assert drawn.labels == {one.id: loaded.labels[one.id] for one in drawn.pool if one.id in loaded.labels}
    with pytest.raises(DataError, match=r"open\.jsonl, line \d: the row has no response"):
        load_pool_and_test(DataConfig(**config | {"test": source}), GSM8K, seed=0)


def test_bad_rows_of_pool_and_test_set_are_counted_apart(tmp_path, config):
    pool = write_lines(tmp_path / "pool.jsonl", "{", *gsm8k_rows(5), {"question": "How?", "answer": "no number"})
    test = write_lines(tmp_path / "held.jsonl", *gsm8k_rows(3), {"question": "How many?"})
    sources = DataConfig(**config | {"train": pool, "test": test}, on_bad_row="skip", pool_limit=3)
    loaded = load_pool_and_test(sources, GSM8K, seed=0)
    assert (len(loaded.pool), len(loaded.test)) == (3, 3)
    assert (loaded.bad_pool_rows, loaded.bad_test_rows) == (2, 1)
    assert loaded.ids == {f"pool-{line:06d}" for line in range(2, 7)}  # Those drawn, and the others.


@pytest.mark.parametrize("name", ["train", "test"])
@pytest.mark.parametrize("task", ["gsm8k", "skills"])
def test_both_sources_are_needed(config, task, name):
    with pytest.raises(ConfigError, match=f"^data.{name} is not set; task {task} needs both data.train and data.test"):
        load_pool_and_test(DataConfig(**config | {"task": task, name: None}), get_task(task), seed=0)


def test_skills_generates_its_own_data():
    config = DataConfig(task="skills", regime="R0", pool_size=50, pool_limit=40, test_limit=30)
    loaded = load_pool_and_test(config, get_task("skills"), seed=1)
    assert (len(loaded.pool), len(loaded.test)) == (40, 30)
    assert (loaded.duplicate_prompts, loaded.test_overlap) == (0, 0)
    assert ids(loaded.pool) == sorted(ids(loaded.pool))
    assert ids(loaded.test) == sorted(ids(loaded.test))
    assert loaded.pool != load_pool_and_test(config, get_task("skills"), seed=2).pool
    assert loaded.test == load_pool_and_test(config, get_task("skills"), seed=2).test


# What a person is asked, and what cannot be labelled

GENERIC = {"prompt": "{{ q }} ", "response": "The answer is {{ label }}."}


def loaded_rows(tmp_path, rows, task, **labels):
    source = write_lines(tmp_path / "pool.jsonl", *rows)
    test = write_lines(tmp_path / "judge.jsonl", {"q": "t", "question": "t", "label": "1", "answer": "true"})
    return load_pool_and_test(DataConfig(train=source, test=test), task, 0, LabelsConfig(**labels))


@pytest.mark.parametrize(
    ("task", "column"),
    [
        (get_task("generic", FormatConfig(**GENERIC)), "label"),
        (get_task("generic", FormatConfig(prompt="{{ q }} ", response="{{ label }}", answers=("1", "no"))), "label"),
        (BOOLQ, "answer"),
    ],
)
@pytest.mark.parametrize(("skip", "text"), [("[skip]", " [Skip]"), ("n/a", "N/A")])
def test_a_pool_row_that_says_it_cannot_be_labelled_has_no_label_and_is_not_asked_for(
    tmp_path, task, column, skip, text
):
    known = "true" if task is BOOLQ else "1"
    rows = [{"q": f"q{n}", "question": f"q{n}", column: cell} for n, cell in enumerate([known, text, None])]
    found = loaded_rows(tmp_path, rows, task, skip=skip)
    assert found.skipped == {"pool-000002"}
    assert found.labels.keys() == {"pool-000001"}
    source = str(tmp_path / "pool.jsonl")
    if skip == "[skip]":
        assert load_pool(task, source).labels.keys() == {"pool-000001"}
        with pytest.raises(DataError, match=r"line 2: the row has \[skip\] in place of a response; .*; line 3"):
            load_examples(task, source, "train")


def test_columns_that_a_person_is_to_see(tmp_path):
    task = get_task("generic", FormatConfig(prompt="{{ q }} ", response="{{ label }}"))
    rows = [{"q": "a", "topic": "x", "n": 3, "when": None, "tags": ["é"]}, {"q": "b", "n": 1.5}]
    found = loaded_rows(tmp_path, rows, task, columns=("topic", "n", "tags"))
    assert found.columns == {
        "pool-000001": {"topic": "x", "n": "3", "tags": '["é"]'},
        "pool-000002": {"topic": "", "n": "1.5", "tags": ""},
    }
    assert loaded_rows(tmp_path, rows, task, columns=("*",)).columns["pool-000001"].keys() == set(rows[0])
    assert loaded_rows(tmp_path, rows, task).columns == {}
    with pytest.raises(ConfigError, match=r"labels\.columns names 'topics', which no row of the pool has"):
        loaded_rows(tmp_path, rows, task, columns=("topics",))


def test_all_rows_that_cannot_be_used_are_named_at_once(tmp_path):
    rows = [*gsm8k_rows(2), {"answer": "#### 1"}, "{", gsm8k_rows(1)[0] | {"question": 3}, {"answer": "#### 1"}]
    source = write_lines(tmp_path / "data.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        load_examples(GSM8K, source, "train")
    said = str(caught.value)
    assert said.startswith(f"{source}, line 3: field 'question' is missing")
    assert "(likewise line 6); line 4: is not valid JSON" in said
    assert said.count("line 5: field 'question' is 3; it must be a string") == 1
    path = tmp_path / "data.csv"
    path.write_text('question,answer\n"a\nb",#### 1\n,#### 2\n\n"",#### 3\n')
    with pytest.raises(DataError, match=r"line 4 \(row 3 of the spreadsheet\): .* \(likewise line 6 \(row 5 of the"):
        load_examples(GSM8K, str(path), "train")


def test_a_great_many_are_counted(tmp_path):
    rows = [gsm8k_rows(1)[0] | {"question": number} for number in range(150)]
    with pytest.raises(DataError) as caught:
        load_examples(GSM8K, write_lines(tmp_path / "data.jsonl", *rows), "train")
    said = str(caught.value)
    assert said.count("it must be a string") == 10
    assert "; and 140 more: line 11, line 12" in said
    assert said.endswith("line 110 and 40 more")
