"""A trace of what the host and the devices did, for TensorBoard and Perfetto."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from star_jax.errors import ConfigError


@contextmanager
def profiled(folder: str | None, log: Callable[[str], None]) -> Iterator[None]:
    """Traces what is done inside, also when it ends with an error.

    The trace is in FOLDER/plugins/profile/TIME: TensorBoard reads the folder, Perfetto the file *.trace.json.gz. One
    that cannot be written is told of and no error: what was traced has results of its own.

    Args:
      folder: where to; it is made where it does not exist. None traces nothing.
      log: told where the trace is, or why there is none.

    Raises:
      ConfigError: the folder cannot be made or written to.
    """
    if folder is None:
        yield
        return
    _prepare(Path(folder))
    import jax

    options = jax.profiler.ProfileOptions()
    # Every Python call would be an event: seconds of a run would fill the trace and crowd out what matters.
    options.python_tracer_level = 0
    jax.profiler.start_trace(folder, profiler_options=options)
    try:
        yield
    finally:
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # of several kinds, from the profiler and from the file system
            log(f"profile: none, it cannot be written to {folder} ({error}); make room, or name another folder")
        else:
            log(f"profile: {folder}, for TensorBoard (--logdir) or ui.perfetto.dev (*.trace.json.gz)")


def _prepare(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--profile is {folder}, which cannot be made ({error.strerror}); name another folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--profile is {folder}, which cannot be written to; name another folder")
