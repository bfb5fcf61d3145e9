"""The released implementation's numbers, reproduced: scores through the command, blends through the strategies."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.dynamic import NORMALISERS
from star_jax.acquisition.strategy import Query, get_strategy, pick
from star_jax.cli import score
from star_jax.config import AcquisitionConfig

GOLDEN = Path(__file__).parent / "golden" / "llama"
RELEASED = AcquisitionConfig(normaliser="released")
BLENDS = {
    **{f"PE_dynamic_t{t}": ("pe_dynamic", "sequence_nll", t) for t in (0, 3, 8)},
    **{f"Entropy_dynamic_t{t}": ("entropy_dynamic", "token_entropy", t) for t in (0, 3, 8)},
    "PE_subtract": ("pe_subtract", "sequence_nll", 0),
    "Entropy_subtract": ("entropy_subtract", "token_entropy", 0),
}


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "released_scores.json").read_text())


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """What the command writes, for base model and adapter."""
    scores = {}
    for name, extra in (("base", []), ("adapter", ["--adapter", str(GOLDEN / "adapter")])):
        out = tmp_path_factory.mktemp("scores") / f"{name}.jsonl"
        flags = ["--model", str(GOLDEN / "model"), "--data", str(GOLDEN / "examples.jsonl"), "--task", "released"]
        assert score.main([*flags, "--answers", "reference", "--out", str(out), *extra]) == 0
        scores[name] = [json.loads(line) for line in out.read_text().splitlines()]
    return scores


@pytest.mark.parametrize("model", ["base", "adapter"])
def test_scores_equal_pe_and_entropy_of_the_released_code(golden, ours, model):
    reference = {row["id"]: row for row in golden[model]}
    assert len(ours[model]) == len(reference) == 48
    for row in ours[model]:
        expected = reference[row["id"]]
        assert row["sequence_nll"] == pytest.approx(expected["PE"], rel=1e-4)
        assert row["token_entropy"] == pytest.approx(expected["Entropy"], rel=1e-4)
        assert row["response_tokens"] == expected["total_tokens"] - expected["prompt_tokens"]


@pytest.mark.parametrize("blend", BLENDS)
def test_released_blends_and_rankings_are_reproduced(golden, ours, blend):
    strategy, measure, t = BLENDS[blend]
    ids = [row["id"] for row in ours["base"]]
    features = [jnp.array([row[measure] for row in ours[model]]) for model in ("base", "adapter")]
    everything = jnp.ones(len(ids), bool)
    found = get_strategy(strategy, RELEASED)
    assert [need.model for need in found.needs] == ["base", "full"]
    picked, raw = pick(found, jax.random.key(0), features, everything, Query(t, total=9, count=len(ids)))
    expected = golden["blend"][blend]
    np.testing.assert_allclose(raw, expected["raw"], rtol=1e-4)
    np.testing.assert_allclose(NORMALISERS["minmax"](raw, everything), expected["normalised"], rtol=1e-4, atol=1e-6)
    assert [ids[i] for i in picked] == expected["ranking"]
