"""The few calls to Label Studio's server that an annotator needs.

Its own SDK brings OpenCV, which holds NumPy below 2.3, and 30 packages besides; these are four requests over the HTTP
library that Hugging Face's hub client has installed already.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from star_jax.config import LabelStudioConfig
from star_jax.errors import ConfigError

JsonObject = dict[str, Any]

TIMEOUT = 60.0
"""Seconds that an answer may take."""


class LabelStudio:
    """A server, seen with one account's token."""

    def __init__(self, settings: LabelStudioConfig) -> None:
        """Nothing is asked yet.

        Args:
          settings: which server.

        Raises:
          ConfigError: there is no token, or no HTTP library.
        """
        try:
            import httpx
        except ImportError:
            raise ConfigError(
                "the annotator label_studio needs the package httpx; install it with pip install "
                "'star_jax[label-studio]'"
            ) from None
        self._token = os.environ.get(settings.key_variable, "").strip()
        if not self._token:
            raise ConfigError(
                f"the environment variable {settings.key_variable} is not set; put an access token of your account at "
                f"{settings.address} into it (Account & Settings)"
            )
        self._httpx, self.url = httpx, settings.address
        self._bearer: str | None = None

    def create_project(self, title: str, interface: str) -> int:
        """The number of a new project; errors as those of `tasks`."""
        made = self._ask("POST", "/api/projects/", json={"title": title, "label_config": interface})
        return int(made["id"])

    def tasks(self, project: int) -> list[JsonObject]:
        """All tasks of a project with their annotations.

        Raises:
          ConfigError: the server cannot be reached, refuses the token, or has no such project.
        """
        found = self._ask(
            "GET", f"/api/projects/{project}/export", params={"exportType": "JSON", "download_all_tasks": "true"}
        )
        return list(found)

    def add_tasks(self, project: int, tasks: Sequence[JsonObject]) -> None:
        """Puts tasks into a project; errors as those of `tasks`."""
        self._ask("POST", f"/api/projects/{project}/import", json=list(tasks))

    def address(self, project: int) -> str:
        """Where people label."""
        return f"{self.url}/projects/{project}"

    def _headers(self) -> dict[str, str]:
        """Tokens with dots in them are exchanged for one that holds some minutes; the others are sent as they are."""
        if self._token.count(".") != 2:
            return {"Authorization": f"Token {self._token}"}
        if self._bearer is None:
            self._bearer = self._send("POST", "/api/token/refresh", {}, json={"refresh": self._token})["access"]
        return {"Authorization": f"Bearer {self._bearer}"}

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        self._bearer = None
        return self._send(method, path, self._headers(), **options)

    def _send(self, method: str, path: str, headers: Mapping[str, str], **options: Any) -> Any:
        try:
            answer = self._httpx.request(method, self.url + path, headers=headers, timeout=TIMEOUT, **options)
        except self._httpx.HTTPError as error:
            raise ConfigError(
                f"Label Studio at {self.url} cannot be reached ({error or type(error).__name__}); start it, or correct "
                "label_studio.url"
            ) from None
        if answer.status_code in (401, 403):
            raise ConfigError(
                f"Label Studio at {self.url} refuses the access token; take a new one from Account & Settings"
            )
        if answer.status_code == 404:
            raise ConfigError(f"Label Studio at {self.url} has no {path}; correct label_studio.project")
        if not answer.is_success:
            said = " ".join(answer.text.split())
            for secret in filter(None, (self._token, self._bearer)):
                said = said.replace(secret, "[token]")
            raise ConfigError(f"Label Studio at {self.url} answers {answer.status_code} ({said[:300]})")
        try:
            return answer.json()
        except ValueError:
            raise ConfigError(
                f"{self.url}{path} does not answer as Label Studio does; correct label_studio.url"
            ) from None
