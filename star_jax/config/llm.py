"""How a language model labels: which endpoint, how it is asked, what it may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from star_jax.config.checks import require, require_finite

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True)
class LlmConfig:
    """The annotator `llm`: any endpoint that speaks OpenAI's protocol.

    The key is read from the environment and written nowhere.

    Example:
      >>> LlmConfig(model="some-model", input_price=0.15, output_price=0.6, spending_limit=2.0).audit
      0.0
    """

    model: str = ""
    """Name of the model at the endpoint."""
    base_url: str | None = None
    """Address of the endpoint, such as http://127.0.0.1:8000/v1; that of OPENAI_BASE_URL, or OpenAI's, when none."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that has the key; a server of one's own mostly needs none."""
    prompt: str = "{{ prompt }}"
    """Jinja template of what the model is asked, over prompt, the text that a person would read."""
    guidelines: str | None = None
    """Text file of what to go by, which the model reads before the examples; none for none."""
    shots: int = 8
    """Labels so far that are shown to it as examples: those of people first; 0 for none."""
    structured: Literal["schema", "object", "none"] = "schema"
    """What the server is asked to hold the answer to: a JSON schema, any JSON object, or nothing. What comes back is
    checked either way."""
    temperature: float | None = 0.0
    """Of the sampling; none says nothing of it, for models that refuse it."""
    max_tokens: int = 512
    """Longest answer, tokens, what it thinks before it answers included."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the endpoint calls that limit; newer models of OpenAI know the second name alone."""
    retries: int = 4
    """How often a call that failed is made again, later each time; and how often an answer that cannot be used is
    asked for again, with what was wrong."""
    timeout: float = 120.0
    """Seconds that a call may take."""
    parallel: int = 4
    """Calls at a time."""
    input_price: float = 0.0
    """Of a million tokens that the model reads, in a currency of yours."""
    output_price: float = 0.0
    """Of a million tokens that it writes."""
    spending_limit: float | None = None
    """No call is made that might bring the costs of the experiment above this; none for no limit."""
    audit: float = 0.0
    """Share of its labels that a person labels too, in labels.csv or on the page, without seeing them; the person's
    count, and how often the two agree is reported."""

    def __post_init__(self) -> None:
        require_finite("llm", self)
        for name, least in (("shots", 0), ("max_tokens", 1), ("retries", 0), ("parallel", 1)):
            value = getattr(self, name)
            require(value >= least, f"llm.{name} is {value}; it must be at least {least}")
        for name in ("input_price", "output_price", "spending_limit", "temperature"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"llm.{name} is {value}; it must not be negative")
        require(self.timeout > 0, f"llm.timeout is {self.timeout}; it must be above 0")
        require(0 <= self.audit <= 1, f"llm.audit is {self.audit}; it must be in [0, 1]")
        # Not repeated in the message: it may be the key itself.
        require(
            bool(_VARIABLE.fullmatch(self.key_variable)),
            "llm.key_variable is no name of an environment variable; give a name such as OPENAI_API_KEY, and put the "
            "key into that variable",
        )
        address = urlsplit(self.base_url or "")
        require(
            not (address.username or address.password or address.query),
            "llm.base_url has a user, a password or a query in it, which would be written into the run's folder; "
            "leave them out, and put the key into the variable of llm.key_variable",
        )
        require(
            self.spending_limit is None or self.input_price + self.output_price > 0,
            "llm.spending_limit is set and no price is; set llm.input_price and llm.output_price too",
        )
