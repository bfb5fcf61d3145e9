"""A run of two processes, as on two hosts: it is the run of one, it ends as one, and it goes on after a host has died.

Belongs here: what needs several processes at once. Each has one device of the CPU, and a folder of its own.
"""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_models import random_model, skills_model
from safetensors.numpy import load_file, save_file

from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import save_model
from star_jax.models.architecture import TransformerConfig

CHILD = Path(__file__).with_name("hosts_child.py")
SILENCE = 20
"""Seconds until a process counts as gone: short, and longer than a busy machine keeps a process waiting."""

CONFIG = """
model: {path: ../model}
strategies: [star]
output_dir: out
lora: {rank: 2, alpha: 4, dropout: 0.1, training_dropout: tied, targets: [q_proj, down_proj]}
training: {learning_rate: 5.0e-3, epochs: 1, batch_size: 8}
scoring: {mc_samples: 2, batch_size: 32}
loop: {initial_labels: 8, labels_per_round: 4, rounds: 3}
data: {task: skills, pool_size: 40, test_limit: 16, max_prompt_tokens: 9, max_response_tokens: 6}
generation: {batch_size: 32}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    tokenizer = load_tokenizer("embedded:skills")
    save_model(skills_model(), folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


def start(folder, name, *arguments, devices=1, **environment):
    """A process in a folder of that name, and programs of theirs that stay between processes."""
    (folder / name).mkdir(exist_ok=True)
    told = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
    }
    return subprocess.Popen(
        [sys.executable, str(CHILD), *arguments],
        cwd=folder / name,
        env=os.environ | told | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def flags(index, port, count=2):
    place = ("--hosts.coordinator-address", f"localhost:{port}", "--hosts.num-processes", str(count))
    return (*place, "--hosts.process-id", str(index), "--hosts.silence-seconds", str(SILENCE))


def start_two(folder, command, *arguments, own=((), ()), **environment):
    port = free_port()
    return [
        start(folder, f"host-{index}", command, *flags(index, port), *own[index], *arguments, **environment)
        for index in range(2)
    ]


def free_port():
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def ends(processes):
    """Code, stdout and lines of stderr of each; what the library says on stdout by which CPUs talk is left out."""
    found = [process.communicate(timeout=300) for process in processes]
    return [
        (one.returncode, re.sub(r"^\[Gloo\].*\n", "", out, flags=re.M), err.splitlines())
        for one, (out, err) in zip(processes, found, strict=True)
    ]


@pytest.fixture(scope="module")
def first(folder):
    """How three runs end that take place at once: of two processes the second of which dies in round 1, of one process
    with two devices, and of one whose other does not come."""
    command = ("run", "--config", "../tiny.yaml")
    both = start_two(folder, *command, DIES="1", DIES_IN="1")
    alone = start(folder, "alone", *command, devices=2)
    lonely = start(folder, "lonely", *command, *flags(0, free_port()), "--hosts.wait-seconds", "11")
    one, other, alone_end, lonely_end = ends([*both, alone, lonely])
    return {"died": (one, other), "alone": alone_end, "lonely": lonely_end}


@pytest.fixture(scope="module")
def alone(folder, first):
    """The run of one process with two devices."""
    code, _, said = first["alone"]
    assert code == 0, said
    return folder / "alone" / "out" / "star" / "seed-0"


@pytest.fixture(scope="module")
def restarted(folder, first):
    """How two processes end that go on where two ended when one died."""
    return ends(start_two(folder, "run", "--config", "../tiny.yaml"))


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_host_that_dies_ends_the_other_which_says_so_last(folder, first):
    (code, out, said), (victim, _, _) = first["died"]
    assert victim == -9
    assert code == 75
    assert out == ""
    assert "another process of this run is gone" in said[-1]
    assert [row["round"] for row in rows(folder / "host-0/out/star/seed-0/metrics.jsonl")] == [0]


def test_a_run_of_two_processes_that_was_taken_up_is_bit_for_bit_that_of_one(folder, alone, restarted):
    """Two addends give the same sum in either order, so that not even rounding differs."""
    [(code, out, said), other] = restarted
    assert (code, other[0]) == (0, 0), (said, other)
    assert "continues after" in "\n".join(said)
    assert out.splitlines()[-1] == "report: out/report.html"
    led = folder / "host-0/out/star/seed-0"
    for number in range(3):
        for name in ("queried.jsonl", "predictions.jsonl"):
            assert rows(led / f"rounds/00{number}/{name}") == rows(alone / f"rounds/00{number}/{name}")
    for one, other in zip(rows(led / "metrics.jsonl"), rows(alone / "metrics.jsonl"), strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] == other[name] for name in one if not name.endswith("_seconds"))
    ours, theirs = (load_file(run / "adapter/adapter_model.safetensors") for run in (led, alone))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_only_the_first_process_writes_and_speaks(folder, restarted):
    _, (_, out, said) = restarted
    assert out == ""
    assert not any("seed 0" in line or "star_jax" in line for line in said)
    assert list((folder / "host-1").iterdir()) == []


def test_a_configuration_error_of_one_ends_both_with_the_same_line(folder):
    both = start_two(folder, "run", "--config", "../tiny.yaml", own=((), ("--lora.rank", "0")))
    (one, out, ours), (other, _, theirs) = ends(both)
    assert (one, other, out) == (2, 2, "")
    assert ours[-1] == theirs[-1] == "star_jax: error: lora.rank is 0; it must be at least 1"


def test_processes_that_were_started_with_other_settings_do_not_begin(folder):
    both = start_two(folder, "run", "--config", "../tiny.yaml", own=((), ("--seeds", "1")))
    (one, _, ours), (other, _, theirs) = ends(both)
    assert (one, other) == (2, 2)
    assert ours[-1] == theirs[-1]
    assert "process 1 has other setting seeds" in ours[-1]


def test_when_the_first_process_dies_the_other_ends_too(folder):
    both = start_two(folder, "run", "--config", "../tiny.yaml", "--output-dir", "new", DIES="0", DIES_IN="0")
    _, (code, _, said) = ends(both)
    assert code == 75
    assert "another process of this run is gone" in said[-1]


def test_a_process_whose_others_do_not_come_says_so_and_gives_up(first):
    code, out, said = first["lonely"]
    assert (code, out) == (2, "")
    assert any("process 0 of 2 on" in line and "waits for the others" in line for line in said)
    assert said[-1].startswith("star_jax: error: after 11 seconds not all processes have come together at localhost:")


def test_each_process_reads_the_rows_that_it_holds_and_no_others(folder):
    """Bytes that it reads of a checkpoint: what is whole on every device, half of what is split, and 2 %."""
    wide = TransformerConfig(
        vocab_size=40,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
    )
    save_model(random_model(np.random.default_rng(1), wide), folder / "wide")
    file = folder / "wide" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, {"format": "pt"})
    split = sum(tensor.nbytes for name, tensor in tensors.items() if "proj" in name)
    whole = file.stat().st_size - split  # embedding, head, norms, and the header of the file
    for code, out, said in ends(start_two(folder, "load", "../wide")):
        assert code == 0, said
        for read, same in json.loads(out).values():
            assert same
            assert read <= (whole + split / 2) * 1.02
