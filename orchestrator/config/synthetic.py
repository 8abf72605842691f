"""Subjects that are no language model: a name such as `synthetic:gaussian?d_model=64` specifies a distribution."""

import hashlib
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationInfo

PREFIX = "synthetic:"
FORMAT = 1
"""Version of how vectors are drawn: goes up when the same name would give other vectors."""


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """Independent standard normal coordinates: the control, without any structure to find (Gao et al., appendix G)."""

    d_model: int = 64
    """Width of a vector."""
    seed: int = 0
    """Of all that is drawn."""

    @property
    def n_parameters(self) -> int:
        """Return the numbers that are kept to draw from: none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Planted:
    """x = Σᵢ₌₁ᵏ aᵢ·d(jᵢ) + noise·g: sums of planted directions of unit norm, the frequent ones before the rare.

    Each of the k draws takes direction j (from 1) with probability ∝ j^(−exponent), with replacement; aᵢ is uniform in
    [0.5, 1.5), g standard normal in every coordinate. Directions are random, and the same for every data.seed.
    """

    d_model: int = 64
    """Width of a vector."""
    latents: int = 1024
    """Planted directions."""
    k: int = 8
    """Draws per vector: at most so many directions are in it."""
    exponent: float = 1.0
    """Of the power law of how often a direction is drawn; 0: all alike."""
    noise: float = 0.01
    """Standard deviation of the noise in each coordinate."""
    seed: int = 0
    """Of the directions and of all that is drawn."""

    @property
    def n_parameters(self) -> int:
        """Return the numbers that are kept to draw from: the directions'."""
        return self.latents * self.d_model


Synthetic = Gaussian | Planted
_Part = TypeVar("_Part", bound="BaseModel")
KINDS: dict[str, type[Synthetic]] = {"gaussian": Gaussian, "planted": Planted}


class _Range(NamedTuple):
    low: float
    high: float


_RANGES = {
    "d_model": _Range(2, 2**16), "latents": _Range(1, 2**22), "k": _Range(1, 2**12), "exponent": _Range(0, 16),
    "noise": _Range(0, 1024), "seed": _Range(0, 2**53),
}  # fmt: skip


def is_synthetic(model: str) -> bool:
    """Say whether `subject.model` names a distribution."""
    return model.startswith(PREFIX)


def parse(text: str) -> Synthetic:
    """Return the distribution of a name; parameters that it leaves out have their defaults.

    Raises:
        ValueError: says the parameter, its value and what is allowed.
    """
    name, _, rest = text.removeprefix(PREFIX).partition("?")
    if name not in KINDS:
        raise ValueError(f"there is no synthetic subject {name!r}{_meant(name, KINDS)}")
    kind = KINDS[name]
    known = {field.name: field.type for field in fields(kind)}
    given: dict[str, float] = {}
    for part in rest.split("&") if rest else []:
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(f"{PREFIX}{name} has no parameter {key!r}{_meant(key, known)}")
        if key in given:
            raise ValueError(f"{key} is given twice")
        given[key] = _number(key, value, whole=known[key] is int)
    return kind(**given)  # type: ignore[arg-type]  # each is an int where the field is one


def spelled(found: Synthetic) -> str:
    """Return the canonical name of a distribution: every parameter, in order."""
    name = next(name for name, kind in KINDS.items() if isinstance(found, kind))
    return f"{PREFIX}{name}?" + "&".join(f"{key}={value}" for key, value in asdict(found).items())


def is_known(model: str) -> bool:
    """Say whether this version can read a model's word: any word but that of a distribution it does not know."""
    try:
        canonical(model)
    except ValueError:
        return False
    return True


def canonical(model: str) -> str:
    """Return a synthetic subject's canonical name, so that one distribution has one config_id; else the model as it is.

    Raises:
        ValueError: as `parse`.
    """
    return spelled(parse(model)) if is_synthetic(model) else model


def check_place(subject: "BaseModel", model: str) -> None:
    """Refuse a hook point, or anything else of a language model, beside a synthetic one.

    Raises:
        ValueError: names the key.
    """
    _check_unused(subject, "subject", model, used="model")


def check_text(data: _Part, info: "ValidationInfo") -> _Part:
    """Return the data of a config, unless they name a text and its subject is synthetic.

    Raises:
        ValueError: names the key.
    """
    subject = info.data.get("subject")
    if subject is not None:
        _check_unused(data, "data", subject.model, used="seed")
    return data


def fingerprint(found: Synthetic) -> str:
    """Return the sha256 of a distribution's canonical name and of FORMAT."""
    return hashlib.sha256(f"{FORMAT} {spelled(found)}".encode()).hexdigest()


def _check_unused(part: "BaseModel", name: str, model: str, *, used: str) -> None:
    """Refuse every field of a part but one, where the subject is synthetic."""
    if not is_synthetic(model):
        return
    given = part.model_dump(exclude={used}, exclude_defaults=True)
    if given:
        key, why = min(given), "which reads no text" if name == "data" else "which is no language model"
        raise ValueError(f"{name}.{key} means nothing to {model}, {why}: leave {key} out")


def _number(key: str, text: str, *, whole: bool) -> float:
    low, high = _RANGES[key]
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise ValueError(f"{key} = {text!r}: must be a {kind} from {low:,} to {high:,}")
    return abs(value)  # −0.0 is spelled 0.0


def _meant(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"
