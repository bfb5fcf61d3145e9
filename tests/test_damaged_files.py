"""Every file that a person or a run may hand in, damaged in every way there is: one sentence, exit code 2, no more.

A good file of each format is changed by each of the mutations, and read as commands read it.
"""

import json
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.active.pool import PoolState
from star_jax.active.state import Choice, LoopState
from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.hub import open_folder, resolve_folder
from star_jax.checkpoints.huggingface import load_folder
from star_jax.checkpoints.peft import load_adapter, save_adapter
from star_jax.cli.guard import guarded_main
from star_jax.cli.run import parse_experiment
from star_jax.config import ExperimentConfig, LoraConfig
from star_jax.data.loading import load_examples
from star_jax.data.tasks import get_task
from star_jax.models.lora import Adapter, init_adapter
from star_jax.report.read import read_runs
from star_jax.runs.loop_state import KeptChoice, load_choice, load_state, save_choice, save_state
from star_jax.runs.run_folder import RunFolder
from star_jax.tracking.timing import PHASES

CONFIG = ExperimentConfig(output_dir="out", strategies=("star",), seeds=(0,))
ROWS = [{"id": f"q{number}", "question": "max 3 9 =", "answer": "9"} for number in range(3)]
SKILLS = get_task("skills")

CONFIG_YAML = "output_dir: mine\nlora:\n  rank: 4\n  alpha: 16.0\nloop: {rounds: 3}\ndata:\n  pool_size: 50\n"


def model_folder(place):
    shutil.copytree(resolve_folder("embedded:skills"), place, dirs_exist_ok=True)
    weights = {"embed_tokens.weight": "model.safetensors", "norm.weight": "model.safetensors"}
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))


def adapter_folder(place):
    base = load_folder(resolve_folder("embedded:skills"))
    fresh = init_adapter(jax.random.key(0), base.params, LoraConfig(rank=2, targets=("q_proj",)))
    save_adapter(fresh, place, base_model="embedded:skills", dropout=0.1)


def read_adapter(place):
    load_adapter(place, read_config(resolve_folder("embedded:skills"), "float32"))


def run_folder(place):
    seconds = {f"{phase}_seconds": 1.0 for phase in PHASES}
    prediction = {"id": "t0", "prediction": "1", "reference": "1", "correct": True, "confidence": 0.5, "group": "a"}
    picked = {"id": "q0", "score": 0.5, "rank": 0, "group": "a", "response": "9"}
    figures = {"accuracy": 0.5, "ece": 0.1, "group_accuracy": {"a": 0.5}, "picked_groups": {"a": 1}}
    with RunFolder.open(place, "star", 0, CONFIG.to_dict(), "cpu", {"pool": "a", "test": "b"}) as folder:
        folder.write_round(0, [picked], [prediction])
        folder.append_metrics({"round": 0, "labelled": 1, **figures, **seconds})
        total = {"total": 7.0} | dict.fromkeys(PHASES, 1.0)
        summary = {"strategy": "star", "seed": 0, "rounds": 1, "labelled": 1, "aubc": None, "seconds": total}
        folder.write_summary(summary | {"accuracy": 0.5, "ece": 0.1})


def state_folder(place):
    weights = {"layers": {"q_proj": {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 4, 5))}}}
    scale = {"layers": {"q_proj": {"scale": jnp.ones(2)}}}
    save_state(place, LoopState(1, PoolState(jnp.zeros(3, jnp.int32)), {}, Adapter(weights, scale), {}))


def choice_file(place):
    save_choice(place, 0, KeptChoice(Choice(jnp.arange(3), jnp.ones(5)), {"score": 1.0}), "origin")


def read_report(place):
    for run in read_runs(place):
        for part in (run.config, run.environment, run.seconds, run.predictions, run.area, run.planned_rounds):
            assert part is None or isinstance(part, dict | list | float | int)
        assert run.rows


def read_run(place):
    with RunFolder.open(place, "star", 0, CONFIG.to_dict(), "cpu", {"pool": "a", "test": "b"}) as folder:
        folder.record()
        folder.metrics()
        folder.queried(0)
        folder.summary()


def read_model(place):
    folder = open_folder(str(place))
    load_folder(folder.path)


FORMATS = {
    "configuration": (
        "mine.yaml",
        lambda place: (place / "mine.yaml").write_text(CONFIG_YAML),
        lambda place: parse_experiment(["--config", str(place / "mine.yaml")]),
    ),
    "JSON lines": (
        "pool.jsonl",
        lambda place: (place / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
        lambda place: load_examples(SKILLS, str(place / "pool.jsonl"), "train"),
    ),
    "CSV": (
        "pool.csv",
        lambda place: (place / "pool.csv").write_text("id,question,answer\nq0,max 3 9 =,9\nq1,max 3 9 =,9\n"),
        lambda place: load_examples(SKILLS, str(place / "pool.csv"), "train"),
    ),
    "Parquet": (
        "pool.parquet",
        lambda place: __import__("datasets").Dataset.from_list(ROWS).to_parquet(place / "pool.parquet"),
        lambda place: load_examples(SKILLS, str(place / "pool.parquet"), "train"),
    ),
    "config.json": ("config.json", model_folder, lambda place: read_config(place, "float32")),
    "generation_config.json": (
        "generation_config.json",
        lambda place: [
            model_folder(place),
            (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]})),
        ],
        lambda place: open_folder(str(place)),
    ),
    "index": ("model.safetensors.index.json", model_folder, lambda place: load_folder(place)),
    "weights": ("model.safetensors", model_folder, lambda place: load_folder(place)),
    "tokenizer.json": ("tokenizer.json", model_folder, lambda place: open_folder(str(place))),
    "tokenizer_config.json": ("tokenizer_config.json", model_folder, lambda place: open_folder(str(place))),
    "adapter_config.json": (
        "adapter_config.json",
        adapter_folder,
        read_adapter,
    ),
    "adapter": (
        "adapter_model.safetensors",
        adapter_folder,
        read_adapter,
    ),
    "state": ("state/001/manifest.ocdbt", state_folder, load_state),
    "state's metadata": ("state/001/_METADATA", state_folder, load_state),
    "choice": ("choice-000.npz", choice_file, lambda place: load_choice(place, 0, "origin")),
    **{
        f"{name}, {reader.__name__}": (f"star/seed-0/{name}", run_folder, reader)
        for name, readers in {
            "metrics.jsonl": (read_report, read_run),
            "config.yaml": (read_report, read_run),
            "summary.json": (read_report, read_run),
            "environment.json": (read_report,),
            "rounds/000/predictions.jsonl": (read_report,),
            "data.json": (read_run,),
            "rounds/000/queried.jsonl": (read_run,),
        }.items()
        for reader in readers
    },
}
"""Format -> a file of it, what makes the folder that it is in, and how it is read."""

NOT_NEEDED = {"generation_config.json", "model.safetensors.index.json", "tokenizer_config.json"}
"""Files of which some damage does no harm, or that need not be there."""

DEEP = b"[" * 100_000
RANDOM = np.random.default_rng(0).bytes(4096)

WHOLE = {
    "random bytes": lambda good: RANDOM,
    "a null in it": lambda good: good[:9] + b"\0" + good[9:],
    "UTF-16": lambda good: good.decode("utf-8", "replace").encode("utf-16"),
    "lists in lists": lambda good: DEEP,
    "objects in objects": lambda good: b'{"a":' * 100_000,
    "YAML's lists in lists": lambda good: b"- " * 20_000 + b"x",
    "aliases of aliases": lambda good: (
        b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (98 + i, 98 + i, 97 + i, 97 + i) for i in range(24))
    ),
    "a list": lambda good: b"[1, 2]\n",
    "a number": lambda good: b"3\n",
    "null": lambda good: b"null\n",
    "a long number": lambda good: b"1" * 10_000 + b"\n",
    "empty": lambda good: b"",
    "a third": lambda good: good[: len(good) // 3],
    "all but the end": lambda good: good[: max(0, len(good) - 7)],
}
"""What is done to the bytes of a file."""


def a_folder(file):
    file.unlink()
    file.mkdir()


def a_circle(file):
    file.unlink()
    file.symlink_to(file.name)


def a_link_to_nothing(file):
    file.unlink()
    file.symlink_to("nothing.at.all")


def rewritten(change):
    return lambda file: file.write_bytes(change(file.read_bytes()))


WAYS = {name: rewritten(change) for name, change in WHOLE.items()}
WAYS |= {way.__name__: way for way in (a_folder, a_circle, a_link_to_nothing)}

VALUES = (None, "x", [], [None], {}, {"x": None}, -1, 0, 1.5, 10**18, 10**400, True, float("nan"), float("inf"), 1e308)
"""What a field is set to."""


def contents(place):
    return {
        str(path.relative_to(place)): (path.read_bytes() if path.is_file() else os.path.islink(path))
        for path in sorted(place.rglob("*"))
        if path.name != ".lock"
    }


def told(place, read, capfd):
    """Exit code and what was said, after making sure that nothing was written."""
    before = contents(place)
    code = guarded_main(lambda argv: (read(place) and 0) or 0, [])
    said = capfd.readouterr().err
    if code:
        assert contents(place) == before
    return code, said


@pytest.fixture
def good(request, tmp_path, capfd, monkeypatch):
    # Handlers that libraries have made keep the stderr of an earlier test, which is closed.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    file, make, read = FORMATS[request.param]
    place = tmp_path / "good"
    place.mkdir()
    make(place)
    assert (place / file).is_file()
    if "index" not in request.param:  # the index is of a model that has more files than this one
        again = shutil.copytree(place, tmp_path / "again")
        assert told(again, read, capfd)[0] == 0
    return place, file, read


# Threads of Orbax answer to an event loop that has ended over a damaged file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("good", FORMATS, indirect=True)
def test_a_damaged_file_is_one_sentence(good, tmp_path, capfd):
    place, file, read = good
    for name, way in WAYS.items():
        work = shutil.copytree(place, tmp_path / "work", symlinks=True)
        way(work / file)
        code, said = told(work, read, capfd)
        assert code in (0, 2), (name, said)
        if code == 0:
            lenient = file in NOT_NEEDED or file.endswith((".jsonl", ".csv", ".parquet", ".yaml", ".npz"))
            assert lenient or name in ("all but the end", "a null in it", "a third", "empty"), (name, file)
        else:
            lines = [line for line in said.splitlines() if line.startswith("star_jax: error: ")]
            assert len(lines) == 1, (name, said)
            assert "Traceback" not in said, (name, said)
            assert len(lines[0]) < 1000 + 2 * len(str(work)), (name, said)
            assert str(work) in lines[0], (name, said)
        shutil.rmtree(work)


OBJECTS = [name for name in FORMATS if ".json" in name and "tokenizer" not in name]


@pytest.mark.parametrize("good", OBJECTS, indirect=True)
def test_a_field_of_another_type_is_one_sentence(good, tmp_path, capfd):
    place, file, read = good
    work = shutil.copytree(place, tmp_path / "work")
    text = (place / file).read_text()
    first, *rest = text.splitlines(keepends=True) if file.endswith("l") else [text]
    row = json.loads(first)
    for field in row:
        for value in VALUES:
            changed = json.dumps(row | {field: value})
            (work / file).write_text(changed + ("\n" if file.endswith("l") else "") + "".join(rest))
            code, said = told(work, read, capfd)
            assert code in (0, 2), (field, value, said)
            assert "Traceback" not in said, (field, value, said)
            assert code == 0 or str(work) in said, (field, value, said)
    (work / file).write_text(json.dumps(row).removesuffix("}") + f', "{field}": 1, "{field}": 1}}\n')
    code, said = told(work, read, capfd)
    assert (code, "twice" in said) == (2, True)


@pytest.mark.parametrize("field", ["lora", "loop", "lora.rank", "lora.alpha", "output_dir", "seeds", "strategies"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "1" + "0" * 5000, "[[[]]]", "{a: {b: c}}", "!!int x", "!!float y"])
def test_a_setting_of_another_type_is_one_sentence(tmp_path, capfd, field, value):
    section, _, name = field.partition(".")
    path = tmp_path / "mine.yaml"
    path.write_text(f"{section}:\n  {name}: {value}\n" if name else f"{section}: {value}\n")
    assert guarded_main(lambda argv: len(str(parse_experiment(["--config", str(path)]))), []) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"star_jax: error: {path}:")
    assert said.count("\n") == 1
    assert len(said) < 500 + len(str(path))
