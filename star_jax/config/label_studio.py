"""Which project of Label Studio people label in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from star_jax.config.checks import require


@dataclass(frozen=True)
class LabelStudioConfig:
    """The annotator `label_studio`. The key is read from the environment and written nowhere.

    Example:
      >>> LabelStudioConfig(project=3).address
      'http://localhost:8080'
    """

    url: str | None = None
    """Address of the server; that of one on this machine, http://localhost:8080, when none."""
    project: int | None = None
    """Number of a project of yours, whose labelling interface has a Choices or TextArea named answer over prompt; made
    for the experiment when none."""
    key_variable: str = "LABEL_STUDIO_API_KEY"
    """Environment variable that has the access token of your account, of either kind."""

    def __post_init__(self) -> None:
        address = urlsplit(self.address)
        require(
            address.scheme in ("http", "https") and bool(address.hostname),
            "label_studio.url is no address; give one such as http://localhost:8080",
        )
        require(
            not (address.username or address.password or address.query),
            "label_studio.url has a user, a password or a query in it, which would be written into the run's folder; "
            "leave them out, and put the token into the variable of label_studio.key_variable",
        )
        # Not repeated in the message: it may be the token itself.
        require(
            bool(re.fullmatch(r"[A-Z][A-Z0-9_]*", self.key_variable)),
            "label_studio.key_variable is no name of an environment variable; give a name such as "
            "LABEL_STUDIO_API_KEY, and put the token into that variable",
        )
        require(
            self.project is None or self.project >= 1,
            f"label_studio.project is {self.project}; it must be at least 1, or none",
        )

    @property
    def address(self) -> str:
        """Of the server."""
        return (self.url or "http://localhost:8080").rstrip("/")
