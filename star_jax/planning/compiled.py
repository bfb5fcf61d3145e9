"""What the compiler of a machine says of a program's memory, without the machine.

A TPU's compiler is in the wheel libtpu, a GPU's in the wheels of jax[cuda13]; that of this machine is at hand. Programs
are those of a run, lowered from shapes alone; a CPU is enough. What a compiler says of operations is not used: it
counts the body of a loop once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from star_jax.acquisition import pool_scoring
from star_jax.acquisition.long_answers import LONG_ANSWER
from star_jax.config import ExperimentConfig
from star_jax.inference.continuous import STEPS, Plan
from star_jax.inference.slots import Limits, Writing, no_rows, read_prompts, write_tokens
from star_jax.models.decoding import unstacked_on_a_cpu
from star_jax.models.kernels_apart import kernels_apart
from star_jax.models.merged import _merged
from star_jax.models.sequences import SequenceInputs
from star_jax.models.transformer import LanguageModel
from star_jax.ops.platform import programs_for
from star_jax.parallel.mesh import ROWS, data_mesh, mesh_of
from star_jax.parallel.placement import FSDP, specs_of
from star_jax.planning.machines import Machine
from star_jax.planning.memory import Arrays, Compiled, CompileProgram, kernel_bytes
from star_jax.planning.programs import Program
from star_jax.training.trainer import Fixed, TrainBatch, train_step

H100_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""What XLA is told of a GPU that is not there, in the text form of its `GpuTargetConfig`."""

TARGETS = {"H100": H100_TARGET}
"""GPU -> the same; others are planned for by formula."""

END = (0,)
"""Tokens that end an answer; which they are does not matter."""

_LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
"""Environment variables that libtpu reads when it is loaded: it must neither look for a machine with chips nor insist
on having one to itself."""


class CompilerFailedError(Exception):
    """A compiler gave up, for another reason than memory; its first line."""


@dataclass(frozen=True)
class Compiler:
    """Compiles programs for the devices of a machine.

    Attributes:
      devices: of it, there or not.
    """

    devices: Sequence[Any]

    def compile(self, program: Program, arrays: Arrays, config: ExperimentConfig, fsdp: int) -> Compiled | None:
        """A program's memory; None for kinds that are planned for by formula alone.

        Args:
          program: what is run.
          arrays: shapes of the model's arrays.
          config: the experiment.
          fsdp: devices that share a model.

        Raises:
          CompilerFailedError: it gave up, for another reason than memory.
        """
        lower = _LOWERED.get(program.kind)
        if lower is None:
            return None
        with programs_for(self.devices[0]), mesh_of(self.devices, fsdp), nothing_kept_of(self.devices[0]):
            found = _memory(partial(lower, program, arrays, config))
            apart = program.kind == "train" and "kernels" in _trained(arrays, config).params
        # Kernels of which a program has a copy, in another form, are no argument of it, and stay where they are.
        beside = kernel_bytes(arrays, fsdp) if apart or _merges(program, arrays) else 0
        return found._replace(total=found.total + beside)

    def programs(self, config: ExperimentConfig, log: Callable[[str], None]) -> CompileProgram:
        """A function that compiles programs, each once, and says so.

        Args:
          config: the experiment.
          log: what is going on; also where a compiler fails, and the formula stands.
        """
        known: dict[tuple[object, ...], Compiled | None] = {}

        def compiled(program: Program, arrays: Arrays, fsdp: int) -> Compiled | None:
            what = (program.kind, program.shape, program.samples, program.written[1], fsdp)
            if what not in known and program.kind in _LOWERED:
                log(f"compiling: {program.name}, fsdp {fsdp}")
                try:
                    known[what] = self.compile(program, arrays, config, fsdp)
                except CompilerFailedError as error:
                    known[what] = None
                    log(f"the compiler failed, so the formula stands: {error}")
            return known.get(what)

        return compiled


def compiler_for(machine: Machine) -> Compiler | str:
    """The compiler for a machine, or why there is none here."""
    if machine.topology is None:
        return Compiler(jax.local_devices())
    chip = machine.chip.kind
    if chip == "tpu" and find_spec("libtpu") is None:
        return "libtpu is not installed (pip install libtpu)"
    if chip == "gpu" and find_spec("jax_cuda13_plugin") is None:
        return "the wheels of jax[cuda13] are not installed"
    card = machine.name.rpartition("x")[2]
    if chip == "gpu" and card not in TARGETS:
        return f"its compiler would have to be told what a {card} is"
    os.environ.update({name: value for name, value in _LIBTPU.items() if name not in os.environ})
    from jax.experimental.topologies import get_topology_desc

    try:
        if chip == "tpu":
            # A slice of one chip is compiled for as a part of one of four.
            name = machine.topology.replace("1x1", "2x2")
            return Compiler(get_topology_desc(platform="tpu", topology_name=name).devices[: machine.devices])
        options = {"target_config": TARGETS[card], "topology": machine.topology}
        return Compiler(get_topology_desc(platform="cuda", topology_name=card.lower(), **options).devices)
    except Exception as error:  # a library that is of another version, or lacks one of its own
        return f"its compiler cannot be started: {str(error).splitlines()[0]}"


@contextmanager
def nothing_kept_of(device: Any) -> Iterator[None]:
    """Programs for a machine that is not this one are not kept on disk: nothing here can read them back."""
    if device in jax.local_devices():
        yield
        return
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # Whether there is one is looked up once.
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _memory(lower: Callable[[], Any]) -> Compiled:
    try:
        compiled = lower().compile()
    except Exception as error:
        # XLA's own, or that of the compiler of a kernel; all others are faults of this package.
        if not type(error).__module__.startswith("jax"):
            raise
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise CompilerFailedError(str(error).strip().split("\n")[0]) from error
        return Compiled(0, 0, _said_size(str(error)))
    held = compiled.memory_analysis()
    arguments, temporaries = held.argument_size_in_bytes, held.temp_size_in_bytes
    return Compiled(
        arguments, temporaries, arguments + temporaries + held.output_size_in_bytes - held.alias_size_in_bytes
    )


def _said_size(error: str) -> float:
    """Bytes that a program takes, by the compiler's refusal; without end where it does not say."""
    found = re.search(r"([\d.]+)([KMGT])i?B? of [\d.]+[KMGT]", error)
    return float(found[1]) * 1024 ** (1 + "KMGT".index(found[2])) if found else float("inf")


def _merges(program: Program, arrays: Arrays) -> bool:
    """Whether the program is given weights with the adapter inside, as `pool_scoring.score_pool` does."""
    kernels = [layer["kernel"] for layer in arrays.model.params["layers"].values() if "kernel" in layer]
    plain = all(isinstance(kernel, jax.ShapeDtypeStruct) and kernel.dtype == jnp.float32 for kernel in kernels)
    return plain and program.kind != "train" and program.samples == 1


def _placed(tree: Any, spec: PartitionSpec | None = None) -> Any:
    """Shapes with the places of their arrays: parameters by the rule of placement, or all as `spec` says."""
    mesh = data_mesh()
    specs = specs_of(tree, mesh.shape[FSDP]) if spec is None else jax.tree.map(lambda _: spec, tree)
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)), tree, specs
    )


def _rows(program: Program) -> tuple[SequenceInputs, Any, Any]:
    """Inputs, a mask of real rows, and their numbers."""
    count = program.shape.rows * data_mesh().size
    numbers: Any = jax.ShapeDtypeStruct((count,), jnp.int32)
    tokens: Any = jax.ShapeDtypeStruct((count, program.shape.width), jnp.int32)
    mask = jax.ShapeDtypeStruct((count,), bool)
    return _placed((SequenceInputs(tokens, numbers, numbers), mask, numbers), PartitionSpec(ROWS))


def _model(program: Program, arrays: Arrays) -> tuple[LanguageModel, Any]:
    """As `pool_scoring.score_pool` gives them to its programs."""
    model, adapter = _placed((arrays.model, arrays.adapter))
    if not _merges(program, arrays):
        return model, adapter
    return _placed(jax.eval_shape(_merged, model, adapter)), None


def _trained(arrays: Arrays, config: ExperimentConfig) -> LanguageModel:
    """As `training.trainer.fit` gives it to its steps."""
    decoder = arrays.model.decoder.clone(rematerialise=config.training.rematerialise)
    found: LanguageModel = jax.eval_shape(kernels_apart, LanguageModel(decoder, arrays.model.params))
    return found


def _key() -> Any:
    return _placed(jax.eval_shape(lambda: jax.random.key(0)), PartitionSpec())


def _score(program: Program, arrays: Arrays, config: ExperimentConfig) -> Any:
    inputs, _, numbers = _rows(program)
    sampling = None
    if program.samples > 1:
        sampling = pool_scoring.Sampling(program.samples, config.lora.dropout, config.scoring.dropout)
    shared = (*_model(program, arrays), _key())
    return pool_scoring._score_proposed.lower(
        shared, (inputs, numbers), capacity=program.shape.capacity, sampling=sampling
    )


def _generate(program: Program, arrays: Arrays, config: ExperimentConfig) -> Any:
    inputs, mask, _ = _rows(program)
    model, rows = _model(program, arrays), (inputs.tokens, inputs.lengths, mask)
    capacity, width = program.shape.capacity, program.written[1]
    if width < LONG_ANSWER:
        return pool_scoring._answer.lower(*model, rows, capacity=capacity, width=width, end_ids=END)
    plan, layers = Plan(Writing(width, END)), jax.eval_shape(unstacked_on_a_cpu, *model)
    waiting = jax.eval_shape(partial(read_prompts, capacity=capacity), model, rows[:2])
    writing = jax.eval_shape(partial(no_rows, slots=plan.sizes(program.shape.width)[-1], drawn=False), waiting)
    numbers: Any = jax.ShapeDtypeStruct((data_mesh().size,), jnp.int32)
    by_device = _placed((writing, Limits(numbers, numbers)), PartitionSpec(ROWS))
    layers = _placed(layers, PartitionSpec())
    return write_tokens.lower(model, layers, *by_device, steps=STEPS, writing=plan.writing)


def _train(program: Program, arrays: Arrays, config: ExperimentConfig) -> Any:
    model, state = _placed((_trained(arrays, config), arrays.state))
    total = _placed(jax.ShapeDtypeStruct((), jnp.int32), PartitionSpec())
    fixed = Fixed(model, _placed(arrays.adapter.scale, PartitionSpec()), _key(), total)
    return train_step.lower(
        fixed,
        state,
        TrainBatch(*_rows(program)),
        capacity=program.shape.capacity,
        lora=config.lora,
        config=config.training,
    )


_LOWERED: dict[str, Callable[[Program, Arrays, ExperimentConfig], Any]] = {
    "score": _score,
    "generate": _generate,
    "train": _train,
}
"""Kind of program -> what lowers it."""
