"""Every law by its key. To add one, write its entry in a file of this package and list it here."""

from difflib import get_close_matches

from orchestrator.errors import ConfigError
from orchestrator.scaling.law import Law
from orchestrator.scaling.laws.compute import LOSS_BY_COMPUTE
from orchestrator.scaling.laws.equal_tokens import LOSS_AT_EQUAL_TOKENS, RATE_AT_EQUAL_TOKENS
from orchestrator.scaling.laws.learning_rate import RATE_BY_SIZE
from orchestrator.scaling.laws.loss import LOSS_BY_SIZE, LOSS_BY_SIZE_AND_K, LOSS_BY_SUBJECT
from orchestrator.scaling.laws.tokens import TOKENS_BY_SIZE
from orchestrator.scaling.types import LawName

_ALL = (
    LOSS_BY_SIZE,
    LOSS_BY_COMPUTE,
    LOSS_BY_SIZE_AND_K,
    TOKENS_BY_SIZE,
    RATE_BY_SIZE,
    LOSS_BY_SUBJECT,
    LOSS_AT_EQUAL_TOKENS,
    RATE_AT_EQUAL_TOKENS,
)
LAWS: dict[LawName, Law] = {law.key: law for law in _ALL}
"""In the order in which reports tell of them."""


def laws_to_fit(*, at_equal_tokens: bool = False) -> list[LawName]:
    """Return the laws that are fitted where none is named."""
    return [key for key, law in LAWS.items() if at_equal_tokens or not law.is_at_equal_tokens]


def law_named(name: str) -> LawName:
    """Return the key of a law from what a person typed.

    Raises:
        ConfigError: there is no such law; the message names the laws.
    """
    key = name.strip().lower()
    if key in LAWS:
        return key
    near = get_close_matches(name.lower(), LAWS, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    known = ", ".join(f"{law.key} = {law.title}" for law in LAWS.values())
    raise ConfigError(f"there is no law {name!r}{meant}", hint=f"The laws: {known}.")
