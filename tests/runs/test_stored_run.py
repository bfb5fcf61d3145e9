"""A run folder that is only read: as an earlier release wrote it, while it is under way, and damaged."""

import json

import pytest

from star_jax.errors import ConfigError, DataError
from star_jax.runs.stored_run import find_run

ROUNDS = ([("a", "1"), ("b", None), ("c", "2")], [("d", "3"), ("e", None)])


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    """Two rounds, with the settings that the first release wrote."""
    run = tmp_path / "out" / "star" / "seed-7"
    labelled = 0
    metrics = []
    for number, rows in enumerate(ROUNDS):
        write_jsonl(run / "rounds" / f"{number:03d}" / "queried.jsonl", [{"id": i, "response": r} for i, r in rows])
        labelled += sum(response is not None for _, response in rows)
        skipped = sum(response is None for _, response in rows)
        metrics.append({"round": number, "labelled": labelled, "skipped": skipped})
    write_jsonl(run / "metrics.jsonl", metrics)
    write_jsonl(run / "rounds" / "001" / "predictions.jsonl", [{"id": "t", "confidence": 0.5, "correct": True}])
    (run / "config.yaml").write_text("seeds: [7]\nacquisition: {arithmetic: released}\ndata: {train: pool.csv}\n")
    (run / "data.json").write_text(json.dumps({"pool": "old", "model": "same"}))
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text("{}")
    return run


def test_settings_that_have_changed_since_are_those_of_today(folder):
    run = find_run(str(folder))
    assert (run.seed, run.rounds, run.config.acquisition.normaliser) == (7, 2, "released")
    assert run.config.data.train == "pool.csv"
    assert (dict(run.labels), run.skipped) == ({"a": "1", "c": "2", "d": "3"}, {"b", "e"})
    assert run.test_predictions() == [{"id": "t", "confidence": 0.5, "correct": True}]


def test_a_round_that_is_not_finished_does_not_count(folder):
    """Its picks were written, and its metrics were not: the adapter may not have seen them."""
    write_jsonl(folder / "rounds" / "002" / "queried.jsonl", [{"id": "f", "response": "4"}])
    assert find_run(str(folder)).labels.keys() == {"a", "c", "d"}


def test_nothing_is_written(folder):
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    find_run(str(folder.parent.parent))
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_an_adapter_outside_a_run_is_none_of_a_run(folder, tmp_path):
    assert find_run(str(folder / "adapter")).path == folder
    (folder / "adapter").rename(tmp_path / "adapter")
    assert find_run(str(tmp_path / "adapter")) is None
    with pytest.raises(ConfigError, match="has no adapter yet"):
        find_run(str(folder))


def test_other_data_are_named(folder):
    run = find_run(str(folder))
    run.check_data({"model": "same", "pool": "new"}, ("model",))
    with pytest.raises(ConfigError, match=r"ids or prompts of the pool have changed"):
        run.check_data({"model": "same", "pool": "new"}, ("model", "pool"))
    with pytest.raises(ConfigError, match=r"the files of model.path have changed"):
        run.check_data({}, ("model",))
    (folder / "data.json").unlink()
    find_run(str(folder)).check_data({"pool": "new"}, ("model", "pool"))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("metrics.jsonl", '{"round": 0, "labelled": 2}\n{"round": 1', "line 2 is not valid JSON"),
        ("metrics.jsonl", '{"round": 0}\n{"round": 1}\n', "has no field 'labelled'"),
        (
            "rounds/001/queried.jsonl",
            '{"id": "d", "response": 3}\n',
            "line 1 has 3 as 'response'; it must be a text",
        ),
        ("rounds/001/queried.jsonl", '{"response": "3"}\n', "line 1 has no field 'id'"),
        ("rounds/001/queried.jsonl", "", "hold 2 labels, and metrics.jsonl counts 3 after round 1"),
        ("rounds/001/queried.jsonl", '["d", "3"]\n', "line 1 is a list, not an object"),
    ],
)
def test_a_damaged_file_is_named(folder, file, content, sentence):
    (folder / file).write_text(content)
    with pytest.raises((ConfigError, DataError), match=sentence):
        find_run(str(folder))
