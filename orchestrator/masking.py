"""What may leave: secrets hidden, control characters written out. For people, files, pages and MLflow alike."""

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

HIDDEN = "***"
_SHORTEST = 8
"""Of a secret variable's value: a shorter one is in too many words."""
_TOKEN = r"(?<!eos_)(?<!bos_)(?<!pad_)(?<!unk_)(?<!sep_)token"
"""Not a tokenizer's."""
_SECRET_WORDS = rf"(?:passw(?:or)?d|passphrase|{_TOKEN}|secret|credentials?|(?:api|access|private)[_-]?key)"
_SECRET_NAME = re.compile(rf"{_SECRET_WORDS}(?:_id)?$", re.IGNORECASE)
_END = r"\s\"'<>`"
"""What ends a URL within a text; a password may hold anything else, a slash or an @ too."""
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE), shown)
    for pattern, shown in (
        (rf"(?<=://)([^:/@?#{_END}]*):(?:(?!://)[^{_END}])*@", rf"\1:{HIDDEN}@"),
        (rf"(?<=://)[^:/@?#{_END}]{{16,}}@", f"{HIDDEN}@"),  # a token in place of a name
        (r"^(?!\w[\w+.-]*://)([^:/@?\s]+):\S*@", rf"\1:{HIDDEN}@"),  # a URL that lacks its scheme
        (rf"([?&;][\w.-]*(?:{_SECRET_WORDS}|key|sig(?:nature)?|auth)=)[^&#{_END}]*", rf"\1{HIDDEN}"),
        (r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", rf"\1 {HIDDEN}"),
        # token=VALUE and "password": "VALUE"; eight hex digits are the first of a lease's token, in a worker's log.
        (rf"(\b[\w.-]*{_SECRET_WORDS}[\"']?\s?[=:]\s?[\"']?)(?![0-9a-f]{{8}}\b)(?!\*\*\*)[^{_END},;)}}\]]{{6,}}",
         rf"\1{HIDDEN}"),
        (r"\b(?:hf_|gh[oprsu]_|github_pat_|glpat-|sk-|xox[abp]-|AKIA)[\w-]{12,}", HIDDEN),
    )
)  # fmt: skip
_LEASE = re.compile(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}")
"""A token of our own, of a lease or a worker: it opens nothing."""
_MAY_HOLD = re.compile(
    "@|passw|passphrase|token|secret|credential|key|sig|auth|basic|bearer|hf_|gh[oprsu]_|github_pat_|glpat-|sk-|xox|akia",
    re.IGNORECASE,
)
"""What a text has wherever a rule matches: of the hint of every point of a figure most have none of it."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Without the tab and the end of a line: codes that move the cursor, colour, title or clear, and turn text around."""


def mask(text: str) -> str:
    """Hide passwords and tokens: in URLs, after the names of secrets, of known forms, and of this environment."""
    for value in _own_secrets():
        text = text.replace(value, HIDDEN)
    if _MAY_HOLD.search(text):
        for pattern, shown in _RULES:
            text = pattern.sub(shown, text)
    return text


def escape(text: str, *, lines: bool = True) -> str:
    r"""Write control characters out, as in `\x1b`; with `lines` a text may have several."""
    found = _CONTROLS.sub(_written, text)
    return found if lines else found.replace("\n", r"\n").replace("\t", r"\t")


def clean(text: str, *, lines: bool = True) -> str:
    """Mask and escape a text."""
    return escape(mask(text), lines=lines)


def mask_all(value: Any) -> Any:
    """Return a value as JSON has it, each text in it masked."""
    return _masked(value, cache(mask))  # large values repeat their keys, and what is said in them


def _masked(value: Any, masked: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list | tuple):
        return [_masked(inner, masked) for inner in value]
    if not isinstance(value, Mapping):
        return value
    return {
        _masked(key, masked): HIDDEN if _is_secret(key, inner) else _masked(inner, masked)
        for key, inner in value.items()
    }


def _is_secret(key: object, value: Any) -> bool:
    """Say whether a value is a text of a key that is named after a secret: it is hidden whole."""
    return bool(isinstance(value, str) and value and _SECRET_NAME.search(str(key)) and not _LEASE.fullmatch(value))


@cache
def _own_secrets() -> tuple[str, ...]:
    """Return the values of this process's variables that are named after secrets, the longest first."""
    found = {value for name, value in os.environ.items() if len(value) >= _SHORTEST and _SECRET_NAME.search(name)}
    return tuple(sorted(found | {quote(value, safe="") for value in found}, key=len, reverse=True))


def _written(found: "re.Match[str]") -> str:
    number = ord(found[0])
    return {10: r"\n", 13: r"\r"}.get(number, f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")
