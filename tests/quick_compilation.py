"""Prints the XLA flag that makes programs compile in half the time, or nothing where this XLA does not know it.

    XLA_FLAGS=$(python tests/quick_compilation.py) python -m pytest

The tests compile thousands of programs and run each once or twice. The flag takes XLA's older way from a program to a
CPU's code; a release that has dropped it would end at once.
"""

import os
import subprocess
import sys

FLAG = "--xla_cpu_use_fusion_emitters=false"


def main() -> None:
    environment = dict(os.environ) | {"XLA_FLAGS": FLAG, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    if subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0:
        print(FLAG)


if __name__ == "__main__":
    main()
