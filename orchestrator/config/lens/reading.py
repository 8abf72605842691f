"""The ways to a LensConfig: validate values that come in, or read back what was stored."""

from typing import Any

from pydantic import ValidationError

from orchestrator.config.flat_keys import flatten
from orchestrator.config.lens.training import LensConfig
from orchestrator.config.validation import explain, read_again
from orchestrator.errors import ConfigError

LENS_HINT = "Every key and what it takes: orch config schema --lens"


def parse_lens(values: Any, where: str = "") -> LensConfig:
    """Validate nested values that come in from outside; `where` they were written.

    Raises:
        ConfigError: says field, value and what is allowed.
    """
    before = f"{where}: " if where else ""
    try:
        return LensConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(before + _said(error), hint=LENS_HINT) from None


def read_lens(text: str, config_id: str) -> LensConfig:
    """Return a stored config, under the id it was stored with where its text is what was stored.

    Raises:
        ConfigError: it is not one of this version; says field and value.
    """
    return read_again(LensConfig, text, config_id, said=_said, hint="orch lens train makes it anew")


def _said(error: ValidationError) -> str:
    keys = [*flatten(LensConfig().model_dump(mode="json")), *LensConfig.model_fields]
    path, said = explain(error, keys=keys)
    return said if path in said else f"{path}: {said}"
