"""The loop's state on disk, through Orbax, and a round's choice until it is trained on. Nothing else knows Orbax.

A checkpoint is written last in a round and appears whole or not at all: it is what makes a round count.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from star_jax.active.pool import PoolState
from star_jax.active.state import Choice, LoopState, base_features, base_measures, measures_of
from star_jax.documents import exists
from star_jax.errors import DataError
from star_jax.models.lora import Adapter
from star_jax.parallel.hosts import several
from star_jax.runs.files import RESTORE, full_disk_named, write_bytes_atomic
from star_jax.tracking.timing import Seconds

FOLDER = "state"

CHOICE = "choice-{:03d}.npz"
"""Name of the file that keeps a round's choice while its labels are waited for."""

_ARRAYS = ("picked", "scores", "base", "full", "response_tokens")
"""What is kept of a choice, beside the base model's measures; its vectors are found again."""

_BASE = "base."
"""Beginning of the names in it of the base model's measures."""

_GUESSES = "guesses"
"""Name in it of the model's answers to the picks, as JSON."""

_SECONDS = "seconds."
"""Beginning of the names in it of the seconds of a phase."""


def save_state(folder: Path, state: LoopState) -> None:
    """Writes `state` to FOLDER/state/RRR, RRR the number of trainings done, and removes older ones."""
    target = (folder / FOLDER / f"{state.round:03d}").absolute()
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(target), _checkpointer() as checkpointer:
        checkpointer.save(target, _to_tree(state))
        checkpointer.wait_until_finished()
    for round_number, path in _finished(folder):
        if round_number != state.round:
            shutil.rmtree(path)


def load_state(folder: Path) -> LoopState | None:
    """The newest whole state of a run folder; None where there is none. Half-written ones are removed.

    The labels are not in it: the run folder has them, round by round.

    Raises:
      DataError: it is damaged.
    """
    found = _finished(folder)
    for path in (folder / FOLDER).glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(path)
    if not found:
        return None
    round_number, path = max(found)
    try:
        with _without_echoes():
            return _restored(round_number, path)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as error:  # Orbax, its file formats and JAX have classes of their own for what is damaged
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]}); {RESTORE}"
        ) from error


@contextmanager
def _without_echoes() -> Iterator[None]:
    """Drops what threads of a library say when the event loop that they answer to has ended over a damaged file."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: None if "Event loop is closed" in str(found.exc_value) else hook(found)
    try:
        yield
    finally:
        sys.unraisablehook = hook


def _restored(round_number: int, path: Path) -> LoopState:
    # Said, because it may have been written with other devices than there are here.
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _checkpointer() as checkpointer:
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), _metadata(checkpointer, path)
        )
        restored = checkpointer.restore(path.absolute(), template)
    # Bound to no device, as in a run that was not interrupted.
    tree = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), restored)
    labelled, adapter = tree["labelled_in"], Adapter(tree["weights"], tree["scale"])
    if labelled.ndim != 1 or not jnp.issubdtype(labelled.dtype, jnp.integer):
        raise ValueError(f"labelled_in is of shape {labelled.shape} and type {labelled.dtype}")
    for name, factors in adapter.weights["layers"].items():
        a, b, scale = factors["a"], factors["b"], adapter.scale["layers"][name]["scale"]
        if not (a.ndim == b.ndim == 3 and a.shape[::2] == b.shape[:2] and scale.shape == a.shape[:1]):
            raise ValueError(f"the factors of {name} are of shapes {a.shape} and {b.shape}")
    base = tree.get("base")  # former states have one measure, without its name, which is found anew
    kept = base_features(base) if isinstance(base, dict) else {}
    return LoopState(round_number, PoolState(labelled), {}, adapter, kept)


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax as the leader of several processes uses it by itself: the others are not waited for."""
    alone = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="leader")
    return ocp.StandardCheckpointer(**({} if several() is None else {"multiprocessing_options": alone}))


def _to_tree(state: LoopState) -> dict[str, Any]:
    assert state.adapter is not None, "a state is saved after a training"
    tree: dict[str, Any] = {
        "labelled_in": state.pool.labelled_in,
        "weights": state.adapter.weights,
        "scale": state.adapter.scale,
    }
    base = {name: jnp.asarray(values) for name, values in base_measures(state).items()}
    tree |= {"base": base} if base else {}
    # Of several processes, Orbax would take a JAX array for one that all of them write.
    return tree if several() is None else jax.tree.map(np.asarray, tree)


def _metadata(checkpointer: ocp.StandardCheckpointer, path: Path) -> Any:
    return checkpointer.metadata(path.absolute()).item_metadata.tree


def _finished(folder: Path) -> list[tuple[int, Path]]:
    # A half-written checkpoint has a temporary name until Orbax renames it, so a plain number is a whole one.
    named = [path for path in (folder / FOLDER).glob("*") if re.fullmatch(r"[0-9]{1,9}", path.name)]
    return [(int(path.name), path) for path in named]


class KeptChoice(NamedTuple):
    """What a round chose, and the seconds that it took, by phase."""

    choice: Choice
    seconds: Seconds


def save_choice(folder: Path, number: int, kept: KeptChoice, origin: str) -> None:
    """Keeps what round `number` chose, so that whoever labels it is not asked for something else later.

    Args:
      folder: of the run.
      number: of the round.
      kept: the choice.
      origin: stands for the settings and the data that it was made with.
    """
    leaves = {
        name: np.asarray(leaf) for name, leaf in kept.choice._asdict().items() if leaf is not None and name in _ARRAYS
    }
    leaves |= {f"{_BASE}{name}": np.asarray(one) for name, one in measures_of(kept.choice.base_features).items()}
    seconds = {f"{_SECONDS}{phase}": np.asarray(value) for phase, value in kept.seconds.items()}
    arrays: dict[str, Any] = leaves | seconds | {"origin": np.asarray(origin)}
    arrays[_GUESSES] = np.asarray(json.dumps(kept.choice.guesses))
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes_atomic(folder / CHOICE.format(number), content.getvalue())


def load_choice(folder: Path, number: int, origin: str) -> KeptChoice | None:
    """What round `number` chose before it was interrupted; None where it has not chosen yet, or from something else."""
    file = folder / CHOICE.format(number)
    if not exists(file):
        return None
    try:
        # Opened here, for NumPy leaves a file open that it cannot read.
        with file.open("rb") as content, np.load(content) as arrays:
            return _kept_choice(arrays, origin)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # of zip files, of arrays, of shapes that nothing can hold
        raise DataError(
            f"{file} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:200]}); restore it, or delete "
            "it and the round chooses again"
        ) from error


def _kept_choice(arrays: Any, origin: str) -> KeptChoice | None:
    if str(arrays["origin"]) != origin:
        return None
    leaves: dict[str, Any] = {name: jnp.asarray(arrays[name]) for name in arrays.files if name in _ARRAYS}
    guesses = json.loads(str(arrays[_GUESSES])) if _GUESSES in arrays else None  # former choices have none
    if guesses is not None and (not isinstance(guesses, list) or not all(isinstance(text, str) for text in guesses)):
        raise ValueError("the answers that were guessed are no texts")
    measures = {name.removeprefix(_BASE): jnp.asarray(arrays[name]) for name in arrays.files if name.startswith(_BASE)}
    choice = Choice(**leaves, base_features=base_features(measures), guesses=guesses)
    picked = choice.picked
    if picked.ndim != 1 or not jnp.issubdtype(picked.dtype, jnp.integer) or len(set(picked.tolist())) != len(picked):
        raise ValueError(f"picked is of shape {picked.shape} and type {picked.dtype}, or names an example twice")
    if any(leaf.ndim != 1 for leaf in (*leaves.values(), *measures.values())):
        raise ValueError("an array of the choice has not one axis")
    spent = [name for name in arrays.files if name.startswith(_SECONDS)]
    return KeptChoice(choice, {name.removeprefix(_SECONDS): float(arrays[name]) for name in spent})


def forget_choices(folder: Path) -> None:
    """Removes what `save_choice` wrote: the state of a finished round has it."""
    for file in folder.glob("choice-*.npz"):
        file.unlink()
