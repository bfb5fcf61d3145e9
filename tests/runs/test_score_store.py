"""The base model's scores on disk: what names a file, and what happens to one that is damaged."""

import ast
import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from star_jax.acquisition.pools import CandidatePool, GeneratedPool, ProposedPool
from star_jax.checkpoints.files import weight_files
from star_jax.checkpoints.hub import resolve_folder
from star_jax.config import DataConfig, ExperimentConfig, LoopConfig, ModelConfig, ScoringConfig
from star_jax.data.batching import Shape
from star_jax.data.tokenization import TokenizedExample
from star_jax.runs import score_store
from star_jax.runs.score_store import BaseScores, scores_origin


def make_rows(rng, count=8):
    """Prompts of 1 to 8 tokens with 1 to 4 more behind each."""
    lengths = rng.integers(1, 9, count).tolist()
    return [
        TokenizedExample(rng.integers(0, 50, length + rng.integers(1, 5)).astype(np.int32), length)
        for length in lengths
    ]


SHAPES = (Shape(4, 6, 20), Shape(4, 16, 64))


def make_pool(rows, shapes=SHAPES):
    """The rows' prompts, to be answered."""
    return GeneratedPool([row.tokens[: row.prompt_length] for row in rows], tuple(shapes), 3, (1, 2), tuple(shapes))


def make_proposed(rows, shapes=SHAPES):
    return ProposedPool(rows, tuple(shapes))


def make_candidates(rows, shapes=SHAPES, count=2):
    """Every `count` rows are one prompt's."""
    return CandidatePool(rows, tuple(shapes), count)


MAKERS = pytest.mark.parametrize("make", [make_pool, make_proposed, make_candidates])


@pytest.fixture
def store(tmp_path):
    said = []
    scores = BaseScores(tmp_path / "base-scores", {"model": "one"}, said.append)
    scores.said = said
    return scores


class Model:
    """Gives random scores and counts how often it is asked."""

    def __init__(self, rng, size):
        self.calls = 0
        self._scores = {
            "token_entropy": rng.normal(size=size).astype(np.float32),
            "response_tokens": rng.integers(1, 9, size).astype(np.int32),
        }

    def __call__(self, logs=None):
        self.calls += 1
        return self._scores


def test_all_measures_are_computed_once_and_read_bit_for_bit(rng, store, tmp_path):
    pool = make_pool(make_rows(rng))
    model = Model(rng, pool.size)
    first = store.measures(pool, model)
    later = BaseScores(tmp_path / "base-scores", {"model": "one"}, print).measures(pool, model)
    assert model.calls == 1
    for measures in (first, later):
        assert measures.keys() == model().keys()
        for name, values in model().items():
            np.testing.assert_array_equal(measures[name], values)
            assert measures[name].dtype == values.dtype


@MAKERS
def test_batches_and_padding_are_not_in_the_name(rng, store, make):
    rows = make_rows(rng, 10)
    name = store.name_of(make(rows))
    assert store.name_of(make([TokenizedExample(row.tokens.copy(), row.prompt_length) for row in rows])) == name
    for shapes in (
        [Shape(4, 12, 48)],
        [Shape(7, 6, 30), Shape(3, 13, 26), Shape(2, 64, 64)],
        [Shape(20, 12, 240)],
    ):
        assert store.name_of(make(rows, shapes)) == name
    assert store.name_of(make(tuple(rows))) == name


@MAKERS
def test_every_token_and_the_order_are_in_the_name(rng, store, make):
    rows = make_rows(rng)
    place = int(rng.integers(len(rows)))
    tokens, length = rows[place]
    other, longer = tokens.copy(), np.insert(tokens, length, 7)
    other[rng.integers(length)] += 1
    others = [
        *(
            [*rows[:place], changed, *rows[place + 1 :]]
            for changed in (TokenizedExample(other, length), TokenizedExample(longer, length + 1))
        ),
        rows[::-1],
        [rows[1], rows[0], *rows[2:]],
        rows[:-2],
        rows + rows[:2],
    ]
    if make is not make_pool:
        last = tokens.copy()
        last[-1] += 1
        others += [
            [*rows[:place], changed, *rows[place + 1 :]]
            for changed in (TokenizedExample(last, length), TokenizedExample(longer, length))
        ]
        others.append([*rows[:place], TokenizedExample(longer, length - 1), *rows[place + 1 :]])
    assert len({store.name_of(make(changed)) for changed in [rows, *others]}) == len(others) + 1


def test_the_type_of_tokens_is_in_the_name(rng, store):
    pool = make_pool(make_rows(rng))
    first, *rest = pool.prompts
    assert store.name_of(pool._replace(prompts=[first.astype(np.int64), *rest])) != store.name_of(pool)


def test_the_kind_of_answer_is_in_the_name(rng, store):
    rows = make_rows(rng)
    pool, proposed, candidates = make_pool(rows), make_proposed(rows), make_candidates(rows)
    others = [
        pool._replace(response_limit=4),
        pool._replace(end_ids=(1,)),
        pool._replace(end_ids=(12,)),
        proposed,
        ProposedPool(pool.rows, pool.shapes),
        candidates,
        candidates._replace(candidates=4),
    ]
    assert len({store.name_of(one) for one in [pool, *others]}) == len(others) + 1


def test_only_known_types_are_hashed(rng, store):
    with pytest.raises(TypeError, match="no part of"):
        store.name_of(make_pool(make_rows(rng))._replace(end_ids={1: 2}))


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(resolve_folder("embedded:skills"), folder)
    return ExperimentConfig(model=ModelConfig(str(folder)))


def origin_of(config):
    return scores_origin(config, resolve_folder(config.model.path))


def test_the_origin_changes_with_model_type_limits_and_adapter(config, tmp_path):
    def model(**changes):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))

    before = origin_of(config)
    (weights,) = weight_files(resolve_folder(config.model.path))
    others = [
        model(dtype="bfloat16"),
        model(quantization="int8"),
        model(ignored_fields=("x",)),
        model(adapter=str(config.model.path)),
        dataclasses.replace(config, data=DataConfig(max_response_tokens=99)),
        dataclasses.replace(config, scoring=ScoringConfig(answers="candidates")),
    ]
    origins = [origin_of(other) for other in others]
    stamp = weights.stat().st_mtime_ns
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stamp, stamp))
    origins.append(origin_of(config))  # other weights of the same age
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stamp + 1, stamp + 1))
    origins.append(origin_of(config))  # written again: what is in the middle of a large file is not read
    os.utime(weights, ns=(stamp, stamp))
    assert origin_of(config) == before
    assert all(origin != before for origin in origins)


def test_what_does_not_matter_does_not_change_it(config, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(config.model.path, moved)  # with the time of the last change
    other = dataclasses.replace(
        config,
        output_dir="elsewhere",
        strategies=("pe",),
        seeds=(3, 4),
        after_round="true",
        model=ModelConfig(str(moved)),
        scoring=ScoringConfig(mc_samples=7, dropout="per_token"),
        loop=LoopConfig(rounds=2),
    )
    assert origin_of(other) == origin_of(config)


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_computed_again_and_said(rng, store, tmp_path, kept):
    pool = make_pool(make_rows(rng))
    model = Model(rng, pool.size)
    store.measures(pool, model)
    (file,) = (tmp_path / "base-scores").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    again = store.measures(pool, model)
    assert model.calls == 2
    np.testing.assert_array_equal(again["token_entropy"], model()["token_entropy"])
    assert len(store.said) == 1
    assert "is damaged" in store.said[0]
    assert file.read_bytes() == content


def test_whatever_bits_are_flipped_it_is_computed_again_and_said(rng, store, tmp_path):
    pool = make_pool(make_rows(rng))
    model = Model(rng, pool.size)
    store.measures(pool, model)
    (file,) = (tmp_path / "base-scores").iterdir()
    content = file.read_bytes()
    for number in range(1, 101):
        damaged = bytearray(content)
        for bit in rng.choice(8 * len(content), rng.integers(1, 4), replace=False).tolist():
            damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        again = store.measures(pool, model)
        assert (model.calls, len(store.said)) == (number + 1, number)
        assert "is damaged" in store.said[-1]
        assert again.keys() == model._scores.keys()
        assert file.read_bytes() == content


@pytest.mark.parametrize("other", [b"", b"PK", bytes(range(40))])
def test_a_file_of_something_else_is_computed_again_and_said(rng, store, tmp_path, other):
    pool = make_pool(make_rows(rng))
    model = Model(rng, pool.size)
    (tmp_path / "base-scores").mkdir()
    (tmp_path / "base-scores" / f"{store.name_of(pool)}.npz").write_bytes(other)
    store.measures(pool, model)
    assert model.calls == len(store.said) == 1


def test_every_piece_of_code_that_scores_is_in_the_origin(config, tmp_path, monkeypatch):
    """Also the library that holds the layers; what only reports is not."""
    package = tmp_path / "star_jax"
    shutil.copytree(Path(score_store.__file__).parent.parent, package, ignore=shutil.ignore_patterns("model"))
    monkeypatch.setattr(score_store, "__file__", str(package / "runs" / "score_store.py"))
    before = origin_of(config)
    with monkeypatch.context() as patch:
        patch.setattr(score_store.flax, "__version__", "0.0.0")
        assert origin_of(config) != before
    scoring = (
        "models/lm_head.py",
        "inference/scoring.py",
        "acquisition/uncertainty.py",
        "ops/matmul.py",
        "data/batching.py",
        "config/scoring.py",
        "config/checks.py",
        "documents/text.py",
    )
    for name in (*scoring, "report/page.py"):
        source = (package / name).read_text()
        (package / name).write_text(source + "\n")
        assert (origin_of(config) != before) == (name in scoring)
        (package / name).write_text(source)
    assert origin_of(config) == before


PACKAGE = Path(score_store.__file__).parents[1]
SCORING = ("acquisition/pool_scoring.py", "checkpoints/huggingface.py")
"""What reads a model, and what scores a pool with it."""


def file_of(name):
    """The file of a dotted module of the package; None where there is none of that name."""
    place = PACKAGE.parent.joinpath(*name.split("."))
    found = [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    return found[0] if found else None


def imported_by(path):
    """Files of the package that a file imports, anywhere in it, with the `__init__` of their folders."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join([*package[: len(package) - node.level + 1]] * bool(node.level) + [node.module or ""])
            names = [origin.strip("."), *(f"{origin}.{alias.name}".strip(".") for alias in node.names)]
        else:
            continue
        for name in names:
            if name.startswith("star_jax."):
                below = name.split(".")
                places = [file_of(".".join(below[:end])) for end in range(2, len(below) + 1)]
                yield from (place for place in places if place is not None)


def closure(paths):
    found, waiting = set(), list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(imported_by(path))
    return found


def covered(path):
    """Whether a file is one of those that the origin hashes."""
    places = [PACKAGE / name for name in score_store._CODE]
    return any(path == place or place in path.parents for place in places)


def test_all_that_is_imported_to_score_a_pool_is_in_the_origin():
    files = closure(PACKAGE / name for name in SCORING)
    assert {PACKAGE / name for name in ("ops/attention.py", "models/transformer.py", "config/scoring.py")} <= files
    assert len(files) > 25
    missing = sorted(str(path.relative_to(PACKAGE)) for path in files if not covered(path))
    assert not missing, f"{', '.join(missing)}: code that scores, which _CODE of runs/score_store.py does not name"
    assert all((PACKAGE / name).exists() for name in score_store._CODE)


def test_the_check_of_imports_sees_every_form(tmp_path, monkeypatch):
    for name in ("a.py", "b.py", "c/__init__.py", "c/d.py", "c/e.py", "f.py", "g.py"):
        (tmp_path / "star_jax" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "star_jax" / name).write_text("")
    (tmp_path / "star_jax" / "a.py").write_text(
        "import numpy\nimport star_jax.b\nfrom star_jax.c import d, nothing\n\ndef late():\n    from . import f\n"
    )
    (tmp_path / "star_jax" / "c" / "d.py").write_text("from .e import x")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "star_jax")
    found = closure([tmp_path / "star_jax" / "a.py"])
    names = {path.relative_to(tmp_path / "star_jax").as_posix() for path in found}
    assert names == {"a.py", "b.py", "c/__init__.py", "c/d.py", "c/e.py", "f.py"}
