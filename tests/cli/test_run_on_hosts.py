"""How `star-jax run` finds the processes that it is one of: flags, and what schedulers leave in the environment."""

import pytest

from star_jax.cli.hosts import Hosts, hosts_of, in_a_cluster
from star_jax.errors import ConfigError

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
FLAGS = ("--hosts.coordinator-address", "node1:1234", "--hosts.num_processes", "2", "--hosts.process-id=1")


def test_flags_say_who_a_process_is():
    assert hosts_of(["--seeds", "1", *FLAGS], "run", {}) == Hosts("node1:1234", 2, 1)
    assert hosts_of([*FLAGS, "--hosts.wait-seconds", "9"], "run", {}) == Hosts("node1:1234", 2, 1, 9)


@pytest.mark.parametrize(
    "argv", [(), ("--hosts.wait-seconds", "9"), ("--hosts.num-processes", "1"), (*FLAGS, "--help")]
)
def test_a_process_that_nothing_is_said_to_is_alone(argv):
    assert hosts_of(argv, "run", {}) is None


def test_what_is_found_by_itself_needs_no_flags():
    assert hosts_of([], "run", SLURM | {"SLURM_NTASKS": "2"}) == Hosts()
    assert hosts_of(["--hosts.num-processes", "1"], "run", SLURM | {"SLURM_NTASKS": "2"}) is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--hosts.num-processes", "two"), "hosts.num_processes is 'two'; it must be a whole number"),
        (("--hosts.num-processes", "0"), "hosts.num_processes is 0; it must be at least 1"),
        ((*FLAGS[:4], "--hosts.process-id", "2"), "hosts.process_id is 2; it must be from 0 to"),
        (("--hosts.coordinator-address", "node1"), "hosts.coordinator_address is node1; it must be HOST:PORT"),
        (("--hosts.silence-seconds", "0"), "hosts.silence_seconds is 0; it must be at least 1"),
    ],
)
def test_what_a_flag_cannot_be_is_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        hosts_of(flags, "run", {})


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        (SLURM | {"SLURM_NTASKS": "2"}, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),  # a shell of a job, and no task of it
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, False),
    ],
)
def test_several_tasks_of_a_scheduler_are_a_cluster(environment, found):
    assert in_a_cluster(environment) is found


@pytest.mark.parametrize(("names", "found"), [("a,b", True), ("a", False)])
def test_hosts_of_a_tpu_slice_are_counted(monkeypatch, names, found):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu" or None)
    assert in_a_cluster({"TPU_WORKER_HOSTNAMES": names}) is found
    assert in_a_cluster({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}) is True
