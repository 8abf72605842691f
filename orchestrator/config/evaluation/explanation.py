"""What is asked of the metric family `explanation`."""

from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, model_validator

from orchestrator.config.job import Part
from orchestrator.config.value_types import NaturalInt, PositiveFloat, PositiveInt, Text


def _base_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the base URL of an endpoint looks like https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("no password or key in a URL: the setting explainer_key names the variable that holds the key")
    return text.rstrip("/")


class ExplanationOptions(Part):
    """Options of the family `explanation`: one explainer, which the setting `explainers` of the worker must allow."""

    endpoint: Annotated[Text, AfterValidator(_base_url)] | None = None
    """Base URL of an OpenAI-compatible endpoint, such as https://host/v1."""
    model: Text | None = None
    """The endpoint's model."""
    command: tuple[Text, ...] | None = None
    """A local program and its arguments; it reads a request as JSON and prints the answer as JSON."""
    latents: PositiveInt | tuple[NaturalInt, ...] = 20
    """How many latents are drawn, by the evaluation's seed; or which ones."""
    build_tokens: PositiveInt = 131_072
    """Tokens before the held-out part that the explainer's excerpts are drawn from."""
    shown_excerpts: PositiveInt = 10
    """Excerpts an explanation is made of: half around the largest activations, half around activations at random."""
    scored_excerpts: PositiveInt = 10
    """Held-out excerpts it is scored on: half around activations at random, half at random."""
    excerpt_tokens: PositiveInt = 32
    timeout_seconds: PositiveFloat = 60.0
    """How long an answer may take."""

    @model_validator(mode="after")
    def _one_explainer(self) -> Self:
        if self.endpoint is not None and self.command is not None:
            raise ValueError("endpoint and command both name an explainer: give one of them")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("endpoint and model belong together: give both, or a command")
        if self.command is not None and not self.command:
            raise ValueError("command is empty: give a program and its arguments")
        return self
