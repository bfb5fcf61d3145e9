"""The base model's scores on disk: computed once for all rounds, strategies and processes that score the same examples.

They depend on neither labels nor adapters, so whoever needs them first computes them, all measures at once, and the
others read them. A file is named after the hash of everything that determines what is in it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from star_jax import __version__
from star_jax.acquisition.pool_scoring import PoolScores
from star_jax.acquisition.pools import CandidatePool, GeneratedPool, Pool
from star_jax.checkpoints.files import weight_files
from star_jax.checkpoints.fingerprints import folder_fingerprint
from star_jax.config import ExperimentConfig
from star_jax.inference.batched import Logs
from star_jax.parallel.hosts import shared
from star_jax.parallel.mesh import parts_of_a_model
from star_jax.runs.files import write_bytes_atomic
from star_jax.runs.partial_scores import PartialScores

FOLDER = "base-scores"
"""Name of the folder in OUTPUT_DIR."""

_WITHOUT_EFFECT = (
    *("output_dir", "strategies", "seeds", "data", "format", "plugins", "annotator", "track", "after_round", "labels"),
    *("simulated", "llm", "label_studio", "lora", "training", "acquisition", "loop", "evaluation", "mesh"),
)
"""Settings that the base model's scores of given tokens do not depend on, but for the limits in `data`."""

_OF_SCORING = ("answers", "batch_size")
"""Those of scoring that they depend on: samples and drawn answers are other measures."""

_CODE = (
    *("acquisition", "active", "checkpoints", "inference", "models", "ops", "parallel", "data", "config", "documents"),
    *("environment.py", "errors.py", "registry.py", "experiment/setup.py", "experiment/judging.py"),
)
"""Folders and files of the package whose code computes scores, or says of what and with which keys."""

_HASH_BYTES = hashlib.sha256().digest_size

StoredScores = dict[str, np.ndarray]
"""Measure -> `N`, one figure an example; and the answers that they were taken on, where those are kept."""

_ANSWERS = ("answer_tokens", "answer_lengths")
"""Names under which answers are kept beside the measures: their tokens, and how many of each count; of a closed set
their numbers alone."""


class BaseScores:
    """Scores of the base model, kept in a folder.

    Args:
      folder: where the files are; made when the first one is written.
      origin: what determines the scores of any examples, from `scores_origin`.
      log: told of files that cannot be read.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], log: Callable[[str], None]) -> None:
        self._folder = folder
        self._origin = json.dumps(origin, sort_keys=True).encode()
        self._log = log

    @property
    def origin(self) -> bytes:
        """What determines the scores besides the examples, as text."""
        return self._origin

    def measures(self, pool: Pool, compute: Callable[[Logs], Mapping[str, Any]]) -> StoredScores:
        """The base model's measures of tokenised examples: read where they are known, else computed and kept.

        Args:
          pool: the examples as they are scored: batches of tokens, and the kind of answer.
          compute: gives every measure `N`; it is told what keeps the results of batches as they come, so that an
            interrupted computation goes on where it was.
        """
        name = self.name_of(pool)
        file = self._folder / f"{name}.npz"
        found = shared(lambda: self._kept(file))
        if found is not None:
            return found
        with PartialScores(self._folder / f".{name}", name) as partial:
            measures: dict[str, Any] = {name: np.asarray(values) for name, values in compute(partial.log).items()}
            shared(lambda: _write(file, measures))
            partial.remove()
        return measures

    def _kept(self, file: Path) -> StoredScores | None:
        found = _read(file) if file.is_file() else None
        if found is None and file.is_file():
            self._log(f"{file} is damaged; the base model's scores are computed again")
        return found

    def name_of(self, pool: Pool) -> str:
        """Hash of what determines the scores of these examples."""
        return pool_digest(self._origin, pool)


def pool_digest(origin: bytes, pool: Pool) -> str:
    """Hash of a pool's rows and kind of answer, however it is batched and padded, behind what else is to count."""
    digest = hashlib.sha256(origin)
    _digest(digest.update, [type(pool).__name__, pool.size, _answers(pool)])
    for row in pool.rows:  # one after the other: a large pool's are made as they are asked for
        _digest(digest.update, row)
    return digest.hexdigest()


def with_answers(scores: PoolScores) -> dict[str, Any]:
    """The measures of a pool and its answers, to be kept together; those of a closed set have no lengths."""
    answers = dict(zip(_ANSWERS, (scores.responses, scores.lengths), strict=True))
    return {**scores.measures, **{name: values for name, values in answers.items() if values is not None}}


def answers_of(stored: StoredScores) -> PoolScores | None:
    """The answers that were kept with the measures; None where they were kept without, as earlier versions did."""
    tokens, lengths = (jnp.asarray(stored[name]) if name in stored else None for name in _ANSWERS)
    return None if tokens is None else PoolScores({}, tokens, lengths)


def scores_origin(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """What determines the base model's scores besides the examples: model, starting adapter, limits, software, device.

    `folder` is the model's. Settings that change nothing may be among them: computing twice is a smaller mistake than
    taking stale scores.
    """
    folders = [folder]
    if config.model.adapter is not None:
        folders.append(Path(config.model.adapter))
    settings = {name: value for name, value in config.to_dict().items() if name not in _WITHOUT_EFFECT}
    settings["model"] |= {"path": None, "adapter": None}  # what is in the folders counts, not where they are
    settings["scoring"] = {name: settings["scoring"][name] for name in _OF_SCORING}
    return {
        "weights": [weights_fingerprint(folder) for folder in folders],
        "settings": settings,
        "limits": [config.data.max_prompt_tokens, config.data.max_response_tokens],
        **computed_with(),
    }


def computed_with() -> dict[str, Any]:
    """Software and devices, on which the rounding of scores depends."""
    fsdp = parts_of_a_model()
    return {
        "versions": [__version__, jax.__version__, jaxlib.__version__, flax.__version__, _code_fingerprint()],
        "devices": [jax.devices()[0].device_kind, jax.device_count(), *([fsdp] if fsdp > 1 else [])],
    }


def weights_fingerprint(folder: Path) -> list[Any]:
    """Of large files the hash reads but the ends; the time of the last change tells the rest."""
    return [folder_fingerprint(folder), [(file.name, file.stat().st_mtime_ns) for file in weight_files(folder)]]


def _code_fingerprint() -> str:
    """Hash of the source that computes scores: between two releases the version says nothing."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    places = [package / name for name in _CODE]
    for file in sorted(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))):
        digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _answers(pool: Pool) -> list[Any]:
    """What a pool's answers are, besides its rows; how it is batched and padded does not matter."""
    if isinstance(pool, GeneratedPool):
        return [pool.response_limit, pool.end_ids]
    return [pool.candidates] if isinstance(pool, CandidatePool) else []


def _digest(update: Callable[[bytes], object], value: Any) -> None:
    """Feeds arrays, numbers and texts, however they are nested, to a hash, each with its type and size."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        value = np.asarray(value)
        update(f"{value.dtype} {value.shape} ".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bool | int | float | str | None):
        update(f"{type(value).__name__} {value!r} ".encode())
    elif isinstance(value, tuple | list):
        update(f"{type(value).__name__} {len(value)} ".encode())
        for item in value:
            _digest(update, item)
    else:
        raise TypeError(f"{type(value).__name__} is no part of tokenised examples")


def _write(file: Path, measures: StoredScores) -> None:
    archive = io.BytesIO()
    np.savez(archive, **measures)  # type: ignore[arg-type]
    content = archive.getvalue()
    # The hash behind it covers every bit; an archive's own checks do not.
    write_bytes_atomic(file, content + hashlib.sha256(content).digest())


def _read(file: Path) -> StoredScores | None:
    """The measures in a file; None where it is damaged."""
    try:
        whole = file.read_bytes()
    except OSError:
        return None
    content, found = whole[:-_HASH_BYTES], whole[-_HASH_BYTES:]
    if hashlib.sha256(content).digest() != found:
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return {name: arrays[name] for name in arrays.files}
