"""Memory, time, advice and words of a plan; what this machine's compiler says."""

import dataclasses

import jax
import pytest
from random_models import random_model
from rich.console import Console

from star_jax.acquisition.long_answers import LONG_ANSWER
from star_jax.config import ModelConfig
from star_jax.errors import ConfigError
from star_jax.experiment.lengths import longest_lengths
from star_jax.models.lora import init_adapter
from star_jax.parallel.mesh import data_mesh
from star_jax.planning.advice import advice
from star_jax.planning.compiled import Compiler, _said_size, compiler_for
from star_jax.planning.machines import GIGA, Machine, machine
from star_jax.planning.memory import arrays_of, held_by
from star_jax.planning.plan import changed, make_plan
from star_jax.planning.time import CALIBRATED, Seconds, ideal, seconds_of
from star_jax.planning.trial import calibration, ideal_seconds
from star_jax.planning.words import print_plan, said
from star_jax.planning.work import sizes_of

LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "dtype": "bfloat16",
}


def on(name):
    return machine(name, lambda: pytest.fail("this machine was asked for"))


@pytest.fixture
def llama(planned):
    """Llama 2 7B in the paper's setting, its rows as long as they may be."""
    small = planned()
    shape = dataclasses.replace(small.shape, **LLAMA)
    experiment = dataclasses.replace(small, shape=shape, lengths=longest_lengths(7473, 1319, 128, 256))
    for section, values in {
        "model": {"dtype": "bfloat16"},
        "lora": {"rank": 64, "targets": ("all-linear",)},
        "training": {"batch_size": 8, "epochs": 3},
        "scoring": {"batch_size": 16},
        "generation": {"batch_size": 16},
        "data": {"max_prompt_tokens": 128, "max_response_tokens": 256},
    }.items():
        experiment = changed(experiment, section, **values)
    return experiment


@pytest.mark.parametrize("fsdp", [1, 2, 4])
@pytest.mark.parametrize("kind", ["none", "int8"])
def test_weights_and_adapter_are_counted_array_by_array(planned, rng, fsdp, kind):
    """Kernels and factors are split where they divide, all else is whole."""
    experiment = planned()
    config = dataclasses.replace(experiment.config, model=ModelConfig(quantization=kind))
    arrays, sizes = arrays_of(config, experiment.shape), sizes_of(config, experiment.shape)
    program = next(one for one in make_plan(experiment, on("H100")).entries if one.program.kind == "train").program
    model = random_model(rng, experiment.shape)
    whole = parts = 0
    for name, layer in model.params["layers"].items():
        for leaf in jax.tree.leaves(layer):
            if leaf.ndim == 3:
                size = leaf.size * (1 if kind == "int8" else 4) + 4 * leaf.shape[0] * leaf.shape[2] * (kind == "int8")
                parts += size // fsdp
            else:
                whole += leaf.nbytes
        assert name
    whole += sum(leaf.nbytes for name in ("embed_tokens", "norm") for leaf in jax.tree.leaves(model.params[name]))
    whole += model.params["lm_head"].nbytes
    held = held_by(program, sizes, arrays, config, fsdp, "cpu")
    assert held.weights == whole + parts
    factors = init_adapter(jax.random.key(0), model.params, config.lora).weights
    # Weights, two moments, gradient and update; and the counters and scales, which are whole.
    assert held.adapter == pytest.approx(5 * sum(leaf.nbytes for leaf in jax.tree.leaves(factors)) / fsdp, abs=64)


def test_what_was_compiled_for_chips_is_within_a_fifth_of_the_formula(llama):
    """GB that libtpu 0.0.42 and XLA's compiler for an H100 gave for these programs (jax 0.10.2)."""
    for change, name, kind, gigabytes in (
        ({}, "v5e-1", "score", 15.7),
        ({}, "H100", "score", 16.74),
        ({}, "H100", "train", 32.97),
        ({"quantization": "nf4"}, "v5e-1", "score", 6.7),
    ):
        plan = make_plan(changed(llama, "model", **change), on(name))
        entry = max((one for one in plan.entries if one.program.kind == kind), key=lambda one: one.bytes)
        assert entry.held.total / GIGA == pytest.approx(gigabytes, rel=0.2), (name, kind)


def test_the_mesh_is_the_one_that_a_run_would_choose(llama):
    assert make_plan(llama, on("8xH100")).mesh == (8, 1)
    assert make_plan(llama, on("v6e-8")).mesh == (8, 1)
    small = make_plan(llama, on("v5e-8"))
    assert small.mesh == (4, 2)
    assert small.fits
    assert make_plan(changed(llama, "mesh", fsdp=8), on("v5e-8")).mesh == (1, 8)
    assert not make_plan(llama, on("v5e-1")).fits
    with pytest.raises(ConfigError, match=r"mesh\.fsdp is 3, and there are 8 devices"):
        make_plan(changed(llama, "mesh", fsdp=3), on("v5e-8"))


def test_more_devices_for_a_model_are_advised_before_other_rows(llama):
    crowded = changed(changed(llama, "mesh", fsdp=2), "training", batch_size=40)
    assert not make_plan(crowded, on("v5e-8")).fits
    assert advice(make_plan(crowded, on("v5e-8")))[0].startswith("--mesh.fsdp")


def test_what_is_advised_fits(llama):
    plan = make_plan(llama, on("v5e-1"))
    ways = advice(plan)
    assert ways
    sections = {}
    for flag in ways[0].split("--")[1:]:
        name, value = flag.split()
        section, _, field = name.partition(".")
        known = {"true": True}.get(value, int(value) if value.isdigit() else value)
        sections.setdefault(section, {})[field.replace("-", "_")] = known
    for section, values in sections.items():
        llama = changed(llama, section, **values)
    assert make_plan(llama, on("v5e-1")).fits
    assert advice(make_plan(llama, on("v5e-1"))) == []


def test_a_compiler_that_finds_more_than_the_formula_has_the_last_word(llama):
    fitting = make_plan(llama, on("H100"))
    over = 64 * GIGA
    entries = tuple(dataclasses.replace(one, held=one.held) for one in fitting.entries)

    class Said:
        total = over

    entries = (dataclasses.replace(entries[0], compiled=Said()), *entries[1:])
    plan = dataclasses.replace(fitting, entries=entries)
    assert fitting.fits
    assert not plan.fits
    assert advice(plan)


def test_times_are_between_a_roofline_and_a_sum(llama):
    plan = make_plan(llama, on("v5e-8"))
    chip = plan.machine.chip
    for entry in plan.entries:
        work = entry.work
        peaks = work.flops / chip.flops, work.moved / chip.bandwidth, sum(work.sent.values()) / chip.link
        assert ideal(work, chip, False) == pytest.approx(sum(peaks))
        found = seconds_of(work, work, chip, False)
        assert max(peaks) < found.low < found.high
        low, high = seconds_of(work, work, chip, False, calibration=2.0)
        assert (low, high) == pytest.approx([2 * sum(peaks) * bound for bound in CALIBRATED])
        assert ideal(work, chip, True) > ideal(work, chip, False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [((1, 2), "1 to 2 seconds"), ((90, 200), "1.5 to 3.33 minutes"), ((3600, 36000), "1 to 10 hours")],
)
def test_ranges_are_said_in_a_unit_that_suits(seconds, text):
    assert said(Seconds(*map(float, seconds))) == text


def test_a_plan_says_what_it_is_made_of(llama, capsys):
    plan = make_plan(changed(llama, "training", batch_size=4), on("v5e-8"))
    print_plan(Console(width=200), plan, [], 10.0, calibrated=False)
    shown = capsys.readouterr().out
    for entry in plan.entries:
        assert entry.program.name in shown
    low, high = plan.seconds
    assert f"price: {low / 360:.3g} to {high / 360:.3g}, at 10 an hour" in shown
    assert "all-gather of a layer's kernels" in shown
    assert "training.batch_size is 4 rows, and 8 devices share them: some are idle" in shown
    assert "it does not fit" not in shown
    tight = make_plan(llama, on("v5e-1"))
    print_plan(Console(width=200), tight, advice(tight), None, calibrated=True)
    shown = capsys.readouterr().out
    assert "it would fit with --" in shown
    assert "price" not in shown
    assert "one program that was run here" in shown


HERE = Machine("here", on("H100").chip._replace(kind="cpu"), 1, None)


@pytest.fixture(scope="module")
def here():
    """The devices that this is, as a machine whose peaks nobody has measured."""
    return HERE._replace(devices=data_mesh().size)


def test_this_machine_compiles_what_a_run_would(planned, here):
    """Arguments are weights, adapter and rows; the second copy of float32 weights is beside a merged program."""
    experiment = planned()
    compiler = compiler_for(here)
    assert isinstance(compiler, Compiler)
    plan = make_plan(experiment, here, compiled=compiler.programs(experiment.config, lambda line: None))
    kinds = {entry.program.kind: entry for entry in plan.entries if entry.compiled is not None}
    assert kinds.keys() == {"score", "generate", "train"}
    layers = sizes_of(experiment.config, experiment.shape).layers
    for entry in kinds.values():
        merged = entry.program.kind != "train" and entry.program.samples == 1
        given = entry.held.weights + entry.held.adapter * (not merged) - layers * merged
        given -= layers * (entry.program.kind == "generate")  # The program itself takes single layers out of the stack.
        if entry.program.kind == "train":
            given = entry.held.weights + 3 / 5 * entry.held.adapter
        rows = 4 * entry.program.shape.rows * (entry.program.shape.width + 8) * 2
        assert 0 <= entry.compiled.arguments - given <= rows + 512
        assert entry.compiled.total >= entry.compiled.arguments


def test_long_answers_are_compiled_as_they_are_written(planned, here):
    """On a CPU with a copy of each layer by itself."""
    experiment = changed(planned(), "data", max_response_tokens=LONG_ANSWER)
    compiler = compiler_for(here)
    assert isinstance(compiler, Compiler)
    plan = make_plan(experiment, here, compiled=compiler.programs(experiment.config, lambda line: None))
    compiled = next(one.compiled for one in plan.entries if one.program.kind == "generate" and one.compiled)
    arrays, layers = (
        arrays_of(experiment.config, experiment.shape),
        sizes_of(experiment.config, experiment.shape).layers,
    )
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays.model.params))
    assert compiled.arguments > weights + layers
    assert compiled.total > weights + 2 * layers


def test_one_program_that_is_run_here_calibrates_the_times(planned, here, rng):
    experiment = planned()
    plan = make_plan(experiment, here)
    program, factor = calibration(plan, random_model(rng, experiment.shape))
    assert program.kind == "score"
    calibrated = make_plan(experiment, here, calibration=factor)
    assert factor > 0
    for entry in calibrated.entries:
        most = CALIBRATED[1] * factor * ideal_seconds(plan, entry.program) * entry.program.batches
        assert entry.seconds.high == pytest.approx(most)
        assert entry.seconds.low < entry.seconds.high


def test_why_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr("star_jax.planning.compiled.find_spec", lambda name: None)
    assert compiler_for(on("v5e-8")) == "libtpu is not installed (pip install libtpu)"
    assert compiler_for(on("H100")) == "the wheels of jax[cuda13] are not installed"
    monkeypatch.setattr("star_jax.planning.compiled.find_spec", lambda name: name)
    assert compiler_for(on("2xA100")) == "its compiler would have to be told what a A100 is"


@pytest.mark.parametrize(
    ("error", "size"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.26G of 15.75G hbm.", 21.26 * 2**30),
        ("RESOURCE_EXHAUSTED: Used 900.5M of 512.0M", 900.5 * 2**20),
        ("RESOURCE_EXHAUSTED: too much", float("inf")),
    ],
)
def test_what_a_program_takes_is_read_from_its_refusal(error, size):
    assert _said_size(error) == pytest.approx(size)


def test_a_target_that_the_model_does_not_have_is_refused_as_in_a_run(planned):
    lora = dataclasses.replace(planned().config.lora, targets=("nothing",))
    with pytest.raises(ConfigError, match=r"lora\.targets"):
        arrays_of(dataclasses.replace(planned().config, lora=lora), planned().shape)
