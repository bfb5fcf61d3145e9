"""Seeds of tests: the same in every run, fresh with `--fuzz`, and told where a test fails, to be repeated."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import pytest
import seeds


def pytest_addoption(parser):
    seeds.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    seeds.configure(config)


@pytest.fixture
def seed(request):
    return seeds.seed_of(request)


@pytest.fixture(scope="module")
def shared(request):
    return seeds.seed_of(request)
"""
TESTS = """
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", ["a", "b"])
def test_drawn(seed, shared, name):
    print(f"DRAWN {name} {seed} {shared}")


@settings(max_examples=5)
@given(st.integers(0, 2**60))
def test_examples(value):
    print(f"EXAMPLE {value}")


def test_fails(seed):
    raise AssertionError(seed)
"""


@pytest.fixture(params=["", "true"], ids=["at_a_desk", "in_ci"])
def run(tmp_path, request):
    """Runs the tests above; gives what each drew, and what is printed of the one that fails."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_these.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def play(*flags):
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *flags]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "CI": request.param}
        environment = {name: value for name, value in environment.items() if value}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        drawn = {
            name: tuple(map(int, numbers.split())) for name, numbers in re.findall(r"DRAWN (\w) (.*)", done.stdout)
        }
        examples = re.findall(r"EXAMPLE (\d+)", done.stdout)
        assert drawn.keys() == {"a", "b"}
        assert len(examples) >= 5
        failed = re.findall(r"^repeat with: pytest test_these.py::test_fails --seed (\d+)$", done.stdout, flags=re.M)
        return drawn, examples, [int(seed) for seed in failed]

    return play


def test_a_seed_is_a_function_of_the_tests_name(run):
    first, again = run(), run()
    assert first == again
    drawn, _, told = first
    assert len({drawn["a"][0], drawn["b"][0], drawn["a"][1]}) == 3
    assert drawn["a"][1] == drawn["b"][1]  # the module's
    assert told == []


def test_fuzz_draws_afresh_and_tells_how_to_repeat_it(run):
    (drawn, examples, told), other = run("--fuzz"), run("--fuzz")
    assert (drawn, examples, told) != other
    assert examples != other[1]
    assert drawn.keys() == other[0].keys()
    (seed,) = told
    assert set(drawn["a"]) == set(drawn["b"]) == {seed}
    assert run("--seed", str(seed)) == (drawn, examples, told)
