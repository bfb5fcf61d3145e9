"""`star-jax COMMAND`, which is also `python -m star_jax COMMAND`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from star_jax import __version__
from star_jax.cli.guard import guarded_main

COMMANDS = {
    "run": "run active-learning experiments: every strategy with every seed",
    "plan": "say what an experiment takes on a machine: memory, time, price",
    "label": "open a local page to label what a run waits for",
    "score": "write how uncertain a model is about each example of a file",
    "select": "pick what to label from the base model alone, all at once",
    "predict": "answer what nobody has labelled, and mark what a person should see",
    "evaluate": "judge an adapter on a labelled file",
    "export": "merge an adapter into its base model, as a Hugging Face folder",
    "report": "build the report of run folders again, or compare experiments",
}
"""Name -> what it does; the module of that name beside this one does it."""

USAGE = "usage: star-jax COMMAND [OPTIONS]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 2 where there is no such command, else as `guard.guarded_main`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-V", "--version"):
        print(f"star_jax {__version__}")
        return 0
    if name in ("-h", "--help"):
        lines = "\n".join(f"  {command:<8} {said}" for command, said in COMMANDS.items())
        print(f"{USAGE}\n\nLabel little, fine-tune well.\n\ncommands:\n{lines}\n")
        print("star-jax COMMAND --help lists the options of a command; star-jax --version prints the version")
        return 0
    if name not in COMMANDS:
        print(f"star_jax: error: there is no command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"star_jax.cli.{name}")
    said = getattr(module, "WHEN_INTERRUPTED", "interrupted"), getattr(module, "WHEN_TERMINATED", None)
    return guarded_main(module.main, rest, *said)


def command() -> None:
    """The console script."""
    sys.exit(main())
