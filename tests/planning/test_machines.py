"""Machines by name."""

import pytest

from star_jax.errors import ConfigError
from star_jax.planning.machines import DEEP, FLAT, GPUS, TPUS, Machine, known_machines, machine

CPU = Machine("here", TPUS["v4"]._replace(kind="cpu"), 2, None)


@pytest.mark.parametrize(
    ("name", "devices", "topology", "chip"),
    [
        ("v5e-8", 8, "v5e:2x4", TPUS["v5e"]),
        ("V6E-16", 16, "v6e:4x4", TPUS["v6e"]),
        ("v5e-1", 1, "v5e:1x1", TPUS["v5e"]),
        ("v5p-8", 4, "v5p:2x2x1", TPUS["v5p"]),  # counted in cores
        ("v4-32", 16, "v4:2x2x4", TPUS["v4"]),
        ("h100", 1, "1x1x1", GPUS["H100"]),
        ("8xH100", 8, "1x1x8", GPUS["H100"]),
        ("2×a100-40gb", 2, "1x1x2", GPUS["A100-40GB"]),  # noqa: RUF001
        (" here ", 2, None, CPU.chip),
        ("cpu", 2, None, CPU.chip),
    ],
)
def test_a_machine_has_the_devices_that_its_name_says(name, devices, topology, chip):
    found = machine(name, lambda: CPU)
    assert (found.devices, found.topology, found.chip) == (devices, topology, chip)


@pytest.mark.parametrize("name", ["v5e-7", "v5p-9", "v7-8", "9xH100", "0xH100", "H1000", "", "x", "8x", "v5e"])
def test_any_other_name_is_refused_with_those_that_there_are(name):
    with pytest.raises(ConfigError) as refused:
        machine(name, lambda: CPU)
    assert str(refused.value) == f"--on is {name!r}, which is no machine that is known; choose {known_machines()}"
    assert all(one in known_machines() for one in (*TPUS, *GPUS))


def test_a_gpu_is_no_cpu():
    with pytest.raises(ConfigError, match="--on is 'cpu'"):
        machine("cpu", lambda: CPU._replace(chip=GPUS["L4"]))


@pytest.mark.parametrize("shapes", [FLAT, DEEP])
def test_topologies_have_as_many_chips_as_they_are_listed_under(shapes):
    for chips, name in shapes.items():
        product = 1
        for side in name.split("x"):
            product *= int(side)
        assert product == chips
