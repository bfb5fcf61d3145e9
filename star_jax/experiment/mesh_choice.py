"""How many devices share a model: what was asked for, or the fewest that it fits on; and what each of them then holds.

Shapes are known from config.json, so that this is decided before any weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from star_jax.config import LoraConfig, MeshConfig
from star_jax.environment import memory_bytes
from star_jax.errors import ConfigError
from star_jax.experiment.sizes import ADAPTER_COPIES, GIGABYTE
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.transformer import Decoder
from star_jax.ops.quantization import Quantization, quantize
from star_jax.parallel.hosts import shared
from star_jax.parallel.mesh import use_mesh
from star_jax.parallel.placement import bytes_on_a_device

MOST_OF_MEMORY = 0.7
"""Share of a device's memory that weights, adapter and moments may take; the rest is for caches and activations."""


class Resident(NamedTuple):
    """Something that lies on devices throughout.

    Attributes:
      what: it is, in words.
      arrays: their shapes.
      copies: how many there are of them.
    """

    what: str
    arrays: Any
    copies: int = 1

    def size(self, fsdp: int) -> int:
        """Bytes on a device, where so many share a model."""
        return self.copies * bytes_on_a_device(self.arrays, fsdp)


def parameter_shapes(shape: TransformerConfig, quantization: Quantization) -> Mapping[str, Any]:
    """Shapes of a decoder's parameters as they are loaded."""
    params = jax.eval_shape(Decoder(shape).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    for layer in params["layers"].values():
        for name in layer.keys() & {"kernel", "gate_up", "down"}:
            layer[name] = jax.eval_shape(partial(quantize, kind=quantization), layer[name])
    found: Mapping[str, Any] = params
    return found


def residents(
    shape: TransformerConfig, quantization: Quantization = "none", lora: LoraConfig | None = None
) -> list[Resident]:
    """What lies on devices throughout: a model, and an adapter in training where one is named.

    Raises:
      ConfigError: the adapter has a target that the model does not have.
    """
    params = parameter_shapes(shape, quantization)
    adapter = None if lora is None else jax.eval_shape(partial(init_adapter, config=lora), jax.random.key(0), params)
    return residents_of(params, adapter)


def residents_of(params: Mapping[str, Any], adapter: Adapter | None) -> list[Resident]:
    """The same from shapes that are known."""
    found = [
        Resident("weights of the layers", {"layers": params["layers"]}),
        Resident("embedding and head, whole", {name: params[name] for name in params.keys() - {"layers"}}),
    ]
    if adapter is not None:
        found.append(Resident("adapter, gradient and moments", adapter.weights, ADAPTER_COPIES))
    return found


def choose_fsdp(asked: MeshConfig, held: Callable[[], Sequence[Resident]], devices: int, room: float | None) -> int:
    """How many devices share a model.

    Args:
      asked: the configuration.
      held: gives what lies on devices throughout; asked for only where it matters.
      devices: that there are.
      room: bytes of memory of one; None where all have the same memory, and nothing is gained by sharing.

    Raises:
      ConfigError: the devices cannot be divided like that.
    """
    counts = [count for count in range(1, devices + 1) if devices % count == 0]
    for name, value in (("fsdp", asked.fsdp), ("data", asked.data)):
        if value != "auto" and value not in counts:
            said = f"{devices} device{'s' if devices > 1 else ''}"
            raise ConfigError(f"mesh.{name} is {value}, and there are {said}; choose one of {counts}, or auto")
    if asked.fsdp != "auto" and asked.data != "auto" and asked.fsdp * asked.data != devices:
        raise ConfigError(
            f"mesh.data is {asked.data} and mesh.fsdp {asked.fsdp}, which are {asked.data * asked.fsdp} devices, and "
            f"there are {devices}; set one of the two to auto"
        )
    if asked.fsdp != "auto":
        return asked.fsdp
    if asked.data != "auto":
        return devices // asked.data
    if room is None or devices == 1:
        return 1
    parts = held()
    fitting = (count for count in counts if sum(one.size(count) for one in parts) <= MOST_OF_MEMORY * room)
    return next(fitting, devices)


def set_mesh(
    asked: MeshConfig,
    shape: TransformerConfig,
    say: Callable[[str], None] = lambda text: None,
    *,
    quantization: Quantization = "none",
    lora: LoraConfig | None = None,
) -> None:
    """Chooses the mesh of this process and says so, where there is anything to say.

    Args:
      asked: the configuration.
      shape: of the model.
      say: told the choice, its reason, and what each device holds.
      quantization: of the model's projections.
      lora: of the adapter that will be trained; None for none.

    Raises:
      ConfigError: the devices cannot be divided as asked, or the adapter has a target that the model does not have.
    """
    devices, room = jax.device_count(), None if jax.default_backend() == "cpu" else float(memory_bytes())
    held = partial(residents, shape, quantization, lora)
    # The leader's choice for all: memory may differ a little between hosts, and a mesh may not.
    fsdp = shared(lambda: choose_fsdp(asked, held, devices, room))
    use_mesh(fsdp)
    if fsdp > 1:
        for line in words(fsdp, devices, held(), None if asked.fsdp != "auto" or asked.data != "auto" else room):
            say(line)
    elif room is not None and devices > 1:
        say(f"mesh: data {devices} x fsdp 1; each device has the whole model")


def words(fsdp: int, devices: int, held: Sequence[Resident], room: float | None) -> list[str]:
    """The choice with its reason, and a table of gigabytes, line by line; `room` is None where it was asked for."""
    alone = sum(one.size(1) for one in held)
    reason = "as asked"
    if room is not None:
        limit = f"{MOST_OF_MEMORY * room / GIGABYTE:.1f} of {room / GIGABYTE:.1f} GB"
        reason = f"one device would hold {alone / GIGABYTE:.1f} GB throughout, and {limit} are for that"
    rows = [(one.what, one.size(1), one.size(fsdp)) for one in held]
    rows.append(("all of it", alone, sum(one.size(fsdp) for one in held)))
    return [
        f"mesh: data {devices // fsdp} x fsdp {fsdp}; {reason}",
        f"  {'GB':30} {'a model':>9} {'a device':>9}",
        *(f"  {what:30} {whole / GIGABYTE:9.3f} {there / GIGABYTE:9.3f}" for what, whole, there in rows),
    ]
