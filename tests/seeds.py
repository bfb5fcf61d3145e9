"""Seeds of everything that tests draw: pinned by a test's name, so that a run repeats the last one, or fresh ones.

    pytest                     the seed of a test is a function of its name
    pytest --fuzz              one fresh seed for all tests, printed where one fails
    pytest NODEID --seed N     that failure again

Hypothesis follows: its examples are the same in every run, fresh with `--fuzz`, and those of a seed that is given.
"""

import os
import zlib

import hypothesis
import pytest

# Where an environment variable says that a continuous integration runs the tests, Hypothesis pins its examples by
# itself: fresh ones have to be asked for. Neither keeps examples for the next run, which a seed could not repeat.
hypothesis.settings.register_profile("pinned", derandomize=True, database=None)
hypothesis.settings.register_profile("fresh", derandomize=False, database=None)


def add_options(parser: pytest.Parser) -> None:
    """`--seed` and `--fuzz`."""
    parser.addoption("--seed", type=int, help="seed of all random inputs, to repeat a failure of --fuzz")
    parser.addoption("--fuzz", action="store_true", help="random inputs are drawn afresh, by a seed that is printed")


def configure(config: pytest.Config) -> None:
    """Draws the fresh seed, which processes started by xdist inherit, and tells Hypothesis of it."""
    if config.option.fuzz and config.option.seed is None:
        config.option.seed = int.from_bytes(os.urandom(4), "big")
    if config.option.seed is None:
        hypothesis.settings.load_profile("pinned")
        return
    hypothesis.settings.load_profile("fresh")
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = config.option.seed


def seed_of(request: pytest.FixtureRequest) -> int:
    """The seed of a test; of a fixture that a module's tests share, that of the module.

    Where it is not pinned, it is printed, which pytest shows when a test fails.
    """
    given: int | None = request.config.option.seed
    if given is None:
        return zlib.crc32(request.node.nodeid.encode())
    print(f"repeat with: pytest {request.node.nodeid} --seed {given}")
    return given
