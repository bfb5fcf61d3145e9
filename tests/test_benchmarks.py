"""The benchmark's arithmetic: operations by formula, statistics of alternations, the table, what is refused.

And that the peer's two ways of writing the same thing give the same results.
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import load_model
from star_jax.checkpoints.peft import load_adapter

FOLDER = str(Path(__file__).parent.parent / "experiments" / "benchmarks")

# The folder's files import one another by their bare names, as scripts do.
sys.path.insert(0, FOLDER)
try:
    names = ("bench", "flops", "pool_size", "random_folders", "real_folder", "sides", "table", "workers", "workload")
    bench, flops, pool_size, random_folders, real_folder, sides, table, workers, workload = (
        importlib.import_module(name) for name in names
    )
finally:
    sys.path.remove(FOLDER)


def random_shape(rng):
    kv_heads, groups, head = (int(n) for n in rng.integers(1, 4, 3))
    heads = kv_heads * groups
    return workload.Shape(
        2 * head * heads, int(rng.integers(1, 4)), heads, kv_heads, int(rng.integers(3, 30)), int(rng.integers(5, 50))
    )


def product(inputs, outputs, backward):
    """Operations of one vector times a matrix, `backward` more such products in the backward pass."""
    return sum(2 for _ in range(inputs) for _ in range(outputs)) * (1 + backward)


def counted(shape, rank, tokens, looked_at, train):
    """Walks through every token, layer and head, and adds up what each product takes."""
    inputs, weights = (1, 1) if train else (0, 0)
    total = 0
    shared = shape.width // shape.heads * shape.kv_heads
    outputs = [(shape.width, n) for n in (shape.width, shared, shared, shape.width, shape.mlp, shape.mlp)]
    for place in range(tokens):
        for _ in range(shape.layers):
            for width, features in [*outputs, (shape.mlp, shape.width)]:
                total += product(width, features, inputs)
                if rank:
                    total += product(width, rank, inputs + weights) + product(rank, features, inputs + weights)
            for _ in range(shape.heads):
                for _ in range(place + 1):
                    # Query times key and weight times value: both have two inputs that need a gradient.
                    total += 2 * product(shape.width // shape.heads, 1, 2 * inputs)
    return total + sum(product(shape.width, shape.vocab, inputs) for _ in range(looked_at))


@pytest.mark.parametrize("train", [False, True])
def test_operations_are_those_of_every_product(rng, train):
    for _ in range(3):
        shape, rank, tokens = random_shape(rng), int(rng.integers(1, 5)), int(rng.integers(2, 8))
        looked_at = int(rng.integers(1, tokens))
        formula = flops.training if train else lambda *sizes: sum(flops.forward(*sizes))
        assert formula(shape, rank, tokens, looked_at) == counted(shape, rank, tokens, looked_at, train)


def test_without_lora_there_are_no_operations_of_lora(rng):
    shape = random_shape(rng)
    assert flops.forward(shape, 0, 5, 2).lora == 0
    assert sum(flops.forward(shape, 0, 5, 2)) == counted(shape, 0, 5, 2, False)


def sizes(shape, **changes):
    small = {"examples": 6, "prompts": 5, "pool": 8, "picks": 3, "test": 2, "new_tokens": 4, "rank": 3}
    return dataclasses.replace(bench.DEFAULTS["cpu"], shape=shape, **{**small, **changes})


def test_generation_reads_a_prompt_and_then_one_token_a_step(rng):
    shape = random_shape(rng)
    one = sizes(shape, prompts=2)
    work = flops.work_of("generate", one, merged=(False, False))
    expected = 0
    for sequence in one.sequences()[:2]:
        seen = sequence.prompt_length
        expected += sum(flops.forward(shape, 3, seen, 1))
        for _ in range(one.new_tokens - 1):
            longer, shorter = (sum(flops.forward(shape, 3, length, 0)) for length in (seen + 1, seen))
            expected += longer - shorter + 2 * shape.vocab * shape.width
            seen += 1
    assert work.flops == expected
    assert work.units == 2 * one.new_tokens


def test_work_of_the_tasks(rng):
    one = sizes(random_shape(rng))
    tokens = [len(sequence.tokens) for sequence in one.sequences()]
    once, merged = (flops.work_of("score-k1", one, merged=(flag, False)) for flag in (False, True))
    assert (once.units, once.tokens) == (6, sum(tokens[:6]))
    assert merged.flops < once.flops
    assert flops.work_of("score-k3", one, merged=(True, False)) == (6, 3 * once.tokens, 3 * once.flops)
    assert flops.work_of("score-k3", one, merged=(True, True)) == (6, 3 * once.tokens, 3 * merged.flops)
    assert flops.work_of("train", one, merged=(True, True)).tokens == once.tokens

    picked = [7, 0, 2]
    whole = flops.work_of("round", one, merged=(True, False), check={"picked": picked})
    answers = sum(len(prompt) + one.new_tokens - 1 for prompt in one.test_prompts())
    assert whole.units == 8
    assert whole.tokens == (1 + 3) * sum(tokens[:8]) + sum(tokens[i] for i in picked) + answers
    with pytest.raises(ValueError, match="'sing'"):
        flops.work_of("sing", one, merged=(False, False))


def test_sequences_have_the_lengths_of_the_file_and_no_special_tokens():
    one = bench.DEFAULTS["cpu"]
    sequences, lengths = one.sequences(), workload.read_lengths()
    assert [(s.prompt_length, s.response_length) for s in sequences] == lengths
    assert len(lengths) == 512
    ids = np.concatenate([s.tokens for s in sequences])
    assert ids.min() == workload.SPECIAL_TOKENS
    assert ids.max() == one.shape.vocab - 1
    again = one.sequences()
    assert all((a.tokens == b.tokens).all() for a, b in zip(sequences, again, strict=True))


def test_the_first_lengths_are_spread_like_all_of_them():
    totals = [prompt + response for prompt, response in workload.read_lengths()]
    for count in (32, 64, 128):
        assert np.mean(totals[:count]) == pytest.approx(np.mean(totals), rel=0.03)


def test_random_folders_are_read_by_the_package(tmp_path):
    one = sizes(workload.Shape(16, 2, 4, 2, 24, 300))
    random_folders.write_folders(one, tmp_path)
    model = load_model(str(tmp_path / "model"))
    adapter, _ = load_adapter(tmp_path / "adapter", model.config)
    assert model.params["layers"]["k_proj"]["kernel"].shape == (2, 16, 8)
    assert len(adapter.weights["layers"]) == 7
    assert adapter.scale["layers"]["q_proj"]["scale"].tolist() == pytest.approx([16 / 3, 16 / 3])
    assert float(np.std(adapter.weights["layers"]["up_proj"]["b"])) == pytest.approx(0.02, rel=0.3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A folder as of a real model: random weights, the tokenizer that ships with the package."""
    path = tmp_path_factory.mktemp("real") / "llama"
    tokenizer = load_tokenizer("embedded:skills")
    shape = workload.Shape(8, 1, 2, 1, 12, len(tokenizer))
    random_folders.write_folders(dataclasses.replace(bench.DEFAULTS["cpu"], shape=shape, rank=2), path)
    tokenizer.save_pretrained(path / "model")
    return path / "model", shape


def write_rows(path, count):
    path.write_text("".join(f'{{"question": "rev {n % 9} 3 =", "answer": "3 {n % 9}"}}\n' for n in range(count)))
    return real_folder.Rows(str(path), "{{ question }}", "{{ answer }}", 8, 6)


def test_a_real_model_comes_with_rows_of_text_that_both_sides_read(llama, tmp_path):
    path, shape = llama
    rows = write_rows(tmp_path / "rows.jsonl", 30)
    (tmp_path / "out").mkdir()
    one = real_folder.write_real_folder(sizes(workload.Shape(1, 1, 1, 1, 1, 1)), str(path), rows, tmp_path / "out")
    assert (one.shape, one.real) == (shape, "model")
    assert one.ends
    back = workload.Workload.from_dict(json.loads(json.dumps(one.to_dict())))
    assert back == one
    sequences = back.sequences()
    assert len(sequences) == 30
    tokenizer = load_tokenizer("embedded:skills")
    for sequence in sequences:
        # The prompt, and behind it the digits of the response and its end.
        texts = [tokenizer.decode(part) for part in np.split(sequence.tokens, [sequence.prompt_length])]
        assert texts[0].split()[0] == "rev"
        assert texts[0].split()[1] in texts[1]
        assert sequence.tokens[-1] in one.ends
    model = load_model(str(tmp_path / "out" / "model"), "float32")
    adapter = load_adapter(tmp_path / "out" / "adapter", model.config)[0]
    assert all(not pair["b"].any() for pair in adapter.weights["layers"].values())


def test_real_models_and_rows_that_cannot_be_used_are_refused(llama, tmp_path):
    path, _ = llama
    few = write_rows(tmp_path / "few.jsonl", 3)
    one = sizes(workload.Shape(1, 1, 1, 1, 1, 1))
    with pytest.raises(workload.BenchError, match=r"few\.jsonl has 3 rows, and 10 are needed"):
        real_folder.write_real_folder(one, str(path), few, tmp_path)
    with pytest.raises(workload.BenchError, match="nowhere"):
        real_folder.write_real_folder(one, str(path), few._replace(path="nowhere.jsonl"), tmp_path)
    with pytest.raises(workload.BenchError, match="no_model"):
        real_folder.write_real_folder(one, str(tmp_path / "no_model"), few, tmp_path)


def test_answers_that_end_by_themselves_are_counted_as_they_are(rng):
    shape = random_shape(rng)
    one = sizes(shape, prompts=2, ends=(2,))
    work = flops.work_of("generate", one, (True, False), {"tokens": [5, 2, 0, 0, 7, 7, 7, 7]})
    lengths = [sequence.prompt_length for sequence in one.sequences()[:2]]
    assert (work.units, work.tokens) == (2, lengths[0] + 1 + lengths[1] + 3)
    read = [(lengths[0] + 1, 2), (lengths[1] + 3, 4)]
    assert work.flops == sum(sum(flops.forward(shape, 0, *pair)) for pair in read)


def test_a_workload_survives_the_pipe():
    one = bench.DEFAULTS["gpu"]
    assert workload.Workload.from_dict(one.to_dict()) == one


def test_the_spread_is_that_of_ratios_within_alternations():
    found = table.compare({0: 10.0, 1: 30.0, 2: 20.0}, {0: 10.0, 1: 5.0, 2: 4.0})
    assert found == (20.0, 5.0, 4.0, 1.0, 6.0)


@pytest.mark.parametrize(("ours", "peer"), [({}, {}), ({0: 1.0}, {1: 1.0}), ({0: 1.0, 1: 1.0}, {0: 1.0})])
def test_alternations_must_be_the_same(ours, peer):
    with pytest.raises(ValueError, match="cannot be compared"):
        table.compare(ours, peer)


def record():
    """Two alternations of one task; star_jax and the plain peer are faster in bfloat16, the tuned one in float32."""
    seconds = {
        ("ours", "float32"): (2.0, 4.0),
        ("ours", "bfloat16"): (1.0, 2.0),
        ("plain", "float32"): (12.0, 12.0),
        ("plain", "bfloat16"): (6.0, 6.0),
        ("tuned", "float32"): (6.0, 10.0),
        ("tuned", "bfloat16"): (8.0, 16.0),
    }
    runs = [
        {"alternation": n, "dtype": dtype, "task": "score-k1", "side": side, "seconds": s, "units": 12}
        | {"tokens": 120, "flops": 1200.0}
        for (side, dtype), both in seconds.items()
        for n, s in enumerate(both)
    ]
    peaks = [
        {"alternation": n, "dtype": dtype, "side": side, "flops_per_second": peak}
        for dtype in ("float32", "bfloat16")
        for side in ("ours", "peer")
        for n, peak in enumerate((900.0, 1100.0))
    ]
    warm = {"side": "tuned", "dtype": "float32", "task": "score-k1", "tried": {"merged": 0.5}}
    words = {"dtype": "float32", "task": "score-k1", "side": "plain", "words": "all equal"}
    return {"runs": runs, "peaks": peaks, "warm_up": [warm], "agreement": [words]}


def test_summary_of_each_dtype_and_of_the_best():
    rows = table.summary(record())
    assert [(row["against"], row["ours_dtype"], row["peer_dtype"], row["best"]) for row in rows] == [
        ("plain", "float32", "float32", False),
        ("tuned", "float32", "float32", False),
        ("plain", "bfloat16", "bfloat16", False),
        ("tuned", "bfloat16", "bfloat16", False),
        ("plain", "bfloat16", "bfloat16", True),
        ("tuned", "bfloat16", "float32", True),
    ]
    plain, single, *_, best = rows
    assert plain["ratio"] == pytest.approx(4.5)
    # Rates 6 and 3 of star_jax, 2 and 1.2 of the peer: medians 4.5 and 1.6, ratios 3 and 2.5.
    assert [single[name] for name in ("ours", "peer", "ratio", "lowest", "highest")] == pytest.approx(
        [4.5, 1.6, 4.5 / 1.6, 2.5, 3.0]
    )
    assert best["ratio"] == pytest.approx(9.0 / 1.6)
    assert single["ours_tokens"] == pytest.approx(45.0)
    assert single["ours_fraction"] == pytest.approx(450.0 / 1000.0)
    # The two peers share a process, and so the peak that it measured.
    assert plain["peer_fraction"] == pytest.approx(100.0 / 1000.0)
    assert single["peer_fraction"] == pytest.approx(160.0 / 1000.0)


def test_tables_say_what_was_measured():
    text = "\n".join(table.tables(record()))
    for peer in ("plain", "tuned"):
        for dtypes in ("float32", "bfloat16", "best dtype against best dtype"):
            assert text.count(f"{dtypes}: star_jax / {peer} Transformers + PEFT (") == 1
    assert "2.50 to 3.00" in text
    assert text.count("peak of Transformers + PEFT: 0 GFLOP/s") == 2
    assert "tried merged 0.50 s" in text
    assert "results, float32, score-k1, plain: all equal" in text
    alone = record()
    for name in ("runs", "peaks"):
        alone[name] = [one for one in alone[name] if one["dtype"] == "float32"]
    assert "best dtype" not in "\n".join(table.tables(alone))


def test_tables_of_a_record_with_other_sides():
    older = record()
    older["runs"] = [one for one in older["runs"] if one["side"] != "plain"]
    for one in older["runs"] + older["warm_up"]:
        one["side"] = "ours" if one["side"] == "ours" else "peer"
    del older["agreement"][0]["side"]
    text = "\n".join(table.tables(older))
    assert text.count("star_jax / Transformers + PEFT\n") == 3
    assert "results, float32, score-k1: all equal" in text


def test_agreement_in_words():
    scores = {"nll": [2.0, 4.0], "entropy": [1.0, 1.0]}
    other = {"nll": [2.0, 5.0], "entropy": [1.0, 1.0]}
    assert "nll 2.0e-01" in table.agreement("score-k1", scores, other)
    assert "mean nll 3.00 and 3.50 nats" in table.agreement("score-k3", scores, other)
    assert table.agreement("generate", {"tokens": [1, 2, 3]}, {"tokens": [1, 0, 3]}) == "2 of 3 tokens equal"
    assert table.agreement("round", {"picked": [1, 2]}, {"picked": [2, 3]}) == "1 of 2 picks in common"
    assert "0.5000 and 0.2500" in table.agreement("train", {"loss": [0.5]}, {"loss": [0.25]})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "score-k1,sing"], "--tasks names sing; choose from"),
        (["--dtypes", "float8"], "--dtypes names float8"),
        (["--peers", "tuned,ours"], "--peers names ours; choose from plain, tuned"),
        (["--peers", ""], "--peers names ; choose from"),
        (["--peers", "plain,plain"], "--peers is plain,plain; each may be named once"),
        (["--tasks", "train,round,train"], "--tasks is train,round,train; each"),
        (["--alternations", "0"], "--alternations is 0"),
        (["--kv-heads", "4"], "6 heads and 4 key-value heads"),
        (["--examples", "513"], "--examples is 513; there are lengths for 512"),
        (["--picks", "33"], "--picks is 33, and --pool only 32"),
        (["--pool", "500"], "--pool and --test together"),
        (["--new-tokens", "0"], "--new-tokens is 0"),
        (["--model", "folder", "--width", "8"], "--width: with --model, the shape is that of the model"),
        (["--model", "folder", "--in-memory-weights"], "--in-memory-weights: with --model"),
        (["--rows", "rows.jsonl"], "--rows: rows of text go with --model"),
    ],
)
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(workload.BenchError, match=message):
        bench.workload_of(bench.parse(flags))


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(workload.BenchError, match=r"^--out: .*out\.json cannot be written: .*; name another file$"):
        bench._check_writable(tmp_path / "file" / "out.json")
    bench._check_writable(tmp_path / "folder" / "out.json")


def test_flags_change_the_workload():
    args = bench.parse(["--device", "gpu", "--layers", "2", "--examples", "32", "--training-dropout", "tied"])
    one = bench.workload_of(args)
    assert (one.shape.layers, one.shape.width, one.examples, one.training_dropout) == (2, 4096, 32, "tied")
    assert args.dtypes == ("bfloat16",)
    assert args.peers == ("plain", "tuned")


def test_a_process_that_died_is_named_with_its_last_words():
    with (
        workers.Worker("nobody", "the third side", "cpu") as worker,
        pytest.raises(
            workload.BenchError, match=r"third side ended with exit code 1 at run plain .*No module named 'nobody'"
        ),
    ):
        worker.ask("run", way="plain", task="train", dtype="float32")


def test_what_others_used_of_the_machine():
    used = bench._cpu_use("ours", ({"ours": 1.0, "peer": 5.0}, 10.0), ({"ours": 4.0, "peer": 5.25}, 14.0))
    assert used == {"idle_cpu_seconds": 0.25, "other_cpu_seconds": 0.75}
    unknown = bench._cpu_use("peer", ({"ours": 1.0, "peer": 5.0}, None), ({"ours": 1.5, "peer": 6.0}, None))
    assert unknown == {"idle_cpu_seconds": 0.5, "other_cpu_seconds": None}
    text = bench.quietness([{"seconds": 2.0} | used, {"seconds": 3.0} | used])
    assert "process that waited used 0.100 cores" in text
    assert "other processes 0.30 and at most 0.38" in text
    assert "other" not in bench.quietness([{"seconds": 2.0} | unknown])


class FakeWorker:
    """Answers as a process does, and keeps what it was asked."""

    def __init__(self, asked):
        self.asked = asked

    def ask(self, operation, **request):
        if operation == "peak":
            return {"flops_per_second": 1.0}
        self.asked.append(request)
        return {"seconds": 1.0, "merged": False, "merged_samples": False, "check": {"picked": [0]}}

    def cpu_seconds(self):
        return 0.0


@pytest.mark.parametrize("peers", [("plain", "tuned"), ("tuned",)])
def test_each_side_goes_first_in_its_turn(peers):
    args = bench.parse(["--peers", ",".join(peers), "--tasks", "train", "--dtypes", "float32"])
    asked = []
    fakes = dict.fromkeys(sides.PROCESSES, FakeWorker(asked))
    found = {"runs": [], "peaks": []}
    every = ("ours", *peers)
    for number in range(2 * len(every)):
        bench._alternate(fakes, sizes(bench.DEFAULTS["cpu"].shape), args, found, number)
    assert [one["side"] for one in found["runs"] if one["first"]] == [*every, *every]
    assert [request.get("way", "ours") for request in asked] == [one["side"] for one in found["runs"]]
    assert all({*every} == {one["side"] for one in found["runs"] if one["alternation"] == n} for n in range(4))


@pytest.fixture
def peer() -> Iterator[ModuleType]:
    """The peer's module, which imports torch."""
    sys.path.insert(0, FOLDER)
    try:
        yield importlib.import_module("peer")
    finally:
        sys.path.remove(FOLDER)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_two_ways_of_the_peer_agree(peer, dtype, tmp_path):
    one = sizes(workload.Shape(16, 2, 4, 2, 24, 300), score_batch=4, train_batch=2, generate_batch=3, dropout=0.5)
    random_folders.write_folders(one, tmp_path)
    tasks = peer.Bench(dataclasses.replace(one, folder=str(tmp_path)), dtype)
    results = {}
    for way in ("plain", "tuned"):
        for task in workload.TASKS:
            tried = tasks.choose(task, way)
            assert not (way == "plain" and any("merged" in name for name in tried))
            results[way, task] = tasks.run(task, way)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    for task in ("score-k1", "score-k3", "train"):
        plain, tuned = (results[way, task].check for way in ("plain", "tuned"))
        assert plain.keys() == tuned.keys()
        for name in plain:
            # Dropout draws the same masks in both, so that samples can be compared one by one.
            np.testing.assert_allclose(plain[name], tuned[name], rtol=tolerance)
    assert results["plain", "score-k1"].check["nll"] != results["plain", "score-k3"].check["nll"]
    assert results["plain", "generate"].variant == "not merged, dynamic cache"
    assert results["plain", "train"].variant == results["tuned", "train"].variant
    assert not any(outcome.merged for (way, _), outcome in results.items() if way == "plain")
    if dtype == "float32":
        for task, name in (("generate", "tokens"), ("round", "picked")):
            assert results["plain", task].check[name] == results["tuned", task].check[name]


def test_a_pool_of_any_size_has_distinct_prompts_of_real_lengths(tmp_path):
    pool_size.write_pool(tmp_path / "pool.jsonl", 3000, 58)
    rows = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == len({row["id"] for row in rows}) == 3000
    lengths = [len(row["text"].split()) for row in rows]
    known = [min(prompt, 58) for prompt, _ in json.loads(pool_size.LENGTHS.read_text())["lengths"]]
    assert set(lengths) <= set(known)
    # Independent draws: the mean is within six of its standard deviations.
    assert abs(np.mean(lengths) - np.mean(known)) < 6 * np.std(known) / np.sqrt(3000)
