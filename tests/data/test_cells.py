"""Missing labels and whole numbers in tables that other programs wrote, whatever the file's format."""

import logging

import datasets
import numpy as np
import pandas
import pytest
from data_files import write_csv, write_lines, write_parquet

from star_jax.config import DataConfig, FormatConfig
from star_jax.data.cells import GAPS, clear_labels, plain_row
from star_jax.data.loading import load_examples, load_pool, load_pool_and_test
from star_jax.data.tasks import get_task
from star_jax.data.tasks.gsm8k import GSM8K

WRITERS = {".csv": write_csv, ".jsonl": lambda path, rows: write_lines(path, *rows), ".parquet": write_parquet}


def generic(**fields):
    return get_task("generic", FormatConfig(prompt="{{ text }}\n", response="{{ label }}", **fields))


def labels(task, source):
    pool = load_pool(task, source)
    return [pool.labels.get(prompt.id) for prompt in pool.prompts]


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("gap", ["NA", "NaN", "#N/A", "None", "null", "nan", "<NA>", "n/a"])
def test_a_word_for_a_gap_is_one_among_numbers_and_a_word_among_words(tmp_path, caplog, ending, gap):
    def read(*cells):
        rows = [{"text": f"q{number}", "label": cell} for number, cell in enumerate(cells)]
        return labels(generic(), WRITERS[ending](tmp_path / f"rows{ending}", rows))

    assert read("1", gap, "2.5", "-3") == ["1", None, "2.5", "-3"]
    assert read("1,234", f" {gap} ", "", "$5"[1:]) == ["1,234", None, None, "5"]
    assert read(gap, gap, gap) == [None, None, None]
    assert read("DE", gap, "FR") == ["DE", gap, "FR"]
    assert read("1", gap, "two") == ["1", gap, "two"]


def test_a_word_for_a_gap_stays_in_prompts(tmp_path):
    rows = [{"text": "NA", "label": "1"}, {"text": "7", "label": "2"}]
    pool = load_pool(generic(), write_csv(tmp_path / "rows.csv", rows))
    assert [prompt.text for prompt in pool.prompts] == ["NA\n", "7\n"]


def test_labels_that_often_mean_a_gap_are_counted_aloud(tmp_path, caplog):
    rows = [{"text": f"q{number}", "label": label} for number, label in enumerate(["DE", "NA", "FR", "None", "NA"])]
    source = write_csv(tmp_path / "rows.csv", rows)
    config = DataConfig(task="generic", train=source, test=source)
    with caplog.at_level(logging.WARNING):
        loaded = load_pool_and_test(config, generic(), 0)
    assert sorted(loaded.labels.values()) == ["DE", "FR", "NA", "NA", "None"]
    assert f"{source}: 3 of 5 labels say NA or None, which is taken as their text; leave a cell empty" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_pool(generic(), rows)
    assert "the rows: 3 of 5 labels say NA or None" in caplog.text
    caplog.clear()
    source = write_csv(tmp_path / "rows.csv", rows[:1] + rows[2:3])
    with caplog.at_level(logging.WARNING):
        load_pool_and_test(DataConfig(task="generic", train=source, test=source), generic(), 0)
    assert not caplog.records


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_whole_numbers_with_gaps_that_pandas_wrote_as_fractions_are_whole(tmp_path, ending):
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": [1, None, -20]})
    assert frame["label"].dtype == float
    path = tmp_path / f"frame{ending}"
    frame.to_csv(path, index=False) if ending == ".csv" else frame.to_parquet(path)
    assert labels(generic(), str(path)) == ["1", None, "-20"]
    assert labels(generic(answers=("1", "-20")), str(path)) == ["1", None, "-20"]


def test_fractions_that_are_meant_stay(tmp_path):
    def read(*cells):
        return labels(generic(), write_csv(tmp_path / "rows.csv", [{"text": "q", "label": cell} for cell in cells]))

    assert read("1.0", "", "2.5") == ["1.0", None, "2.5"]
    assert read("1.0", "2.0") == ["1.0", "2.0"]  # without a gap nothing has turned whole numbers into fractions
    assert read("1.0", "", "v2.0") == ["1.0", None, "v2.0"]


@pytest.mark.parametrize("value", [1.0, 1, np.float32(1), np.int64(1), "1.0", "1"])
def test_a_closed_answer_that_is_a_whole_number_is_found_however_it_is_written(value):
    rows = [{"text": "q", "label": value}]
    (example,) = load_examples(generic(answers=("0", "1")), rows, "test")
    assert example.response == "1"


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pandas.NA, pandas.NaT, "", "  "])
def test_every_kind_of_missing_value_in_memory_is_missing(missing):
    rows = [{"text": "q", "label": "yes"}, {"text": "q", "label": missing}]
    assert labels(generic(), rows) == ["yes", None]
    rows = [{"question": "q", "answer": "#### 1"}, {"question": "q", "answer": missing}]
    assert labels(GSM8K, rows) == ["#### 1".replace("####", "The final answer is"), None]


def test_numpy_values_become_pythons():
    row = plain_row(
        {"a": np.int64(3), "b": np.bool_(True), "c": np.float32(0.5), "d": [1], "e": "x", "f": np.str_("y")}
    )
    assert row == {"a": 3, "b": True, "c": 0.5, "d": [1], "e": "x", "f": "y"}
    assert [type(value) for value in row.values()] == [int, bool, float, list, str, str]


def test_columns_that_no_row_has_are_no_matter():
    rows = [{"a": "x"}, {"b": "1"}]
    clear_labels(rows, ["c", "b"])
    assert rows == [{"a": "x"}, {"b": "1"}]
    assert all(gap == gap.lower() for gap in GAPS)


def test_csv_files_of_the_hub_keep_words_that_pandas_takes_for_gaps(tmp_path, monkeypatch):
    cells = ["NA", "None", "null", "DE", ""]
    path = write_csv(tmp_path / "rows.csv", [{"text": f"q{n}", "label": cell} for n, cell in enumerate(cells)])
    load = datasets.load_dataset
    cache = str(tmp_path / "cache")

    def from_file(name, config, split, **options):
        assert (name, config, split) == ("owner/countries", None, "train")
        return load("csv", data_files=path, split="train", cache_dir=cache, **options)

    assert [row["label"] for row in from_file("owner/countries", None, "train")] == [None, None, None, "DE", None]
    monkeypatch.setattr(datasets, "load_dataset", from_file)
    assert labels(generic(), "owner/countries") == ["NA", "None", "null", "DE", None]
