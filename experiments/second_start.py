"""How long a run takes to its first results, when nothing is compiled yet and when everything is.

    python experiments/second_start.py [flags of star_jax.run]

starts the same run twice as processes of their own, with an empty cache of programs and then with what the first start
left there, and prints when each phase of its first two rounds was finished, in seconds since the process began: the
first batch is done before the first of them. Both are stopped there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PHASE = re.compile(r"round (\d+)/\d+: (\w+): .* in ")
"""The line that a run writes at the end of a phase."""

ROUNDS = 2
"""In the first there is nothing to score yet."""


def phases(flags: Sequence[str], folder: Path, programs: Path) -> Iterator[tuple[str, float]]:
    """Name -> seconds since the start, of each phase of the first rounds of a run into `folder`."""
    command = [sys.executable, "-m", "star_jax.run", "--strategies", "star", *flags, "--output-dir", str(folder)]
    environment = dict(os.environ) | {"JAX_COMPILATION_CACHE_DIR": str(programs), "PYTHONUNBUFFERED": "1"}
    began = time.monotonic()
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    ) as run:
        assert run.stderr is not None
        written = []
        for line in run.stderr:
            written.append(line)
            if found := PHASE.search(line):
                number, name = found.groups()
                yield f"round {number}, {name}", time.monotonic() - began
                if int(number) == ROUNDS:
                    run.terminate()
                    return
    sys.exit(f"the run ended with exit code {run.returncode} before round {ROUNDS}:\n{''.join(written)}")


def main() -> None:
    flags = sys.argv[1:]
    if flags[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        starts = [dict(phases(flags, folder / name, folder / "programs")) for name in ("first", "second")]
    print(f"{'finished after':<24}{'first start':>12}{'second start':>14}")
    for name, seconds in starts[0].items():
        print(f"{name:<24}{seconds:>10.1f} s{starts[1][name]:>12.1f} s")


if __name__ == "__main__":
    main()
