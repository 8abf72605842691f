"""Values of a range: range, lin, log and pow2, both ends included."""

import math
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fractions import Fraction

from orchestrator.errors import ConfigError
from orchestrator.units import token_count

Number = int | float

MAX_VALUES = 10_000
MAX_NUMBER = 1e300
DIGITS = 6
"""Significant digits of a value between the ends, so that a config's hash does not depend on the last bit."""


def spread(kind: str, arguments: Sequence[object], *, location: str) -> list[Number]:
    """Return the values of one range, the ends as they were written, integers where they are whole.

    Raises:
        ConfigError: an unknown kind, or arguments it cannot take.
    """
    make, form = _KINDS[kind]
    arguments = [token_count(one) or one if isinstance(one, str) else one for one in arguments]
    numbers = [x for x in arguments if isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= MAX_NUMBER]
    try:
        if len(numbers) != len(arguments):
            raise ValueError("takes finite numbers only")
        if len(numbers) != form.count(",") + 1:
            raise ValueError(f"takes {form.count(',') + 1} numbers")
        return make(*numbers)
    except (ValueError, OverflowError) as error:
        given = ", ".join(str(argument) for argument in arguments)
        raise ConfigError(f"{location}: {kind}: [{given[:80]}] {error}", hint=f"Write {kind}: {form}.") from None


def unknown_range(kind: str) -> str:
    """Return what to say of a word that is no kind of range, with the one that was probably meant."""
    near = get_close_matches(kind, _KINDS, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no range {kind!r}{meant}"


def range_forms() -> str:
    """Return how each kind of range is written, for a hint."""
    return ", ".join(f"{kind}: {form}" for kind, (_, form) in _KINDS.items())


def is_range(kinds: Sequence[str]) -> bool:
    """Say whether a mapping with these keys is a range."""
    return len(kinds) == 1 and kinds[0] in _KINDS


def _range(start: Number, stop: Number, step: Number) -> list[Number]:
    a, b, by = _exact(start), _exact(stop), _exact(step)
    if by == 0 or (b - a) / by < 0:
        raise ValueError("never reaches its end")
    count = _checked((b - a) // by + 1)
    whole = all(isinstance(x, int) for x in (start, stop, step))
    return [start, *(_tidy(a + i * by, whole=whole) for i in range(1, count))]


def _lin(start: Number, stop: Number, count: Number) -> list[Number]:
    a, b = _exact(start), _exact(stop)
    return _between(start, stop, count, lambda share: a + (b - a) * share)


def _log(start: Number, stop: Number, count: Number) -> list[Number]:
    if start <= 0 or stop <= 0:
        raise ValueError("needs two ends above 0")
    a, b = math.log(start), math.log(stop)
    return _between(start, stop, count, lambda share: Fraction(math.exp(a + (b - a) * float(share))))


def _pow2(first: Number, last: Number) -> list[Number]:
    if not isinstance(first, int) or not isinstance(last, int) or max(abs(first), abs(last)) > 62:
        raise ValueError("needs whole exponents from -62 to 62")
    step = 1 if last >= first else -1
    return [2**e if e >= 0 else 2.0**e for e in range(first, last + step, step)]


def _between(start: Number, stop: Number, count: Number, at: Callable[[Fraction], Fraction]) -> list[Number]:
    n = _checked(_exact(count))
    if n == 1:
        return [start]
    if start == stop:
        raise ValueError("needs two different ends")
    whole = isinstance(start, int) and isinstance(stop, int)
    return [start, *(_tidy(at(Fraction(i, n - 1)), whole=whole) for i in range(1, n - 1)), stop]


def _checked(count: Fraction | int) -> int:
    if count != int(count) or not 1 <= count <= MAX_VALUES:
        raise ValueError(f"makes {float(count):g} values; from 1 to {MAX_VALUES} are possible")
    return int(count)


def _exact(number: Number) -> Fraction:
    return Fraction(str(number))  # the decimal as written, not its nearest binary neighbour


def _tidy(exact: Fraction, *, whole: bool) -> Number:
    if whole and exact.denominator == 1:
        return int(exact)
    rounded = float(f"{float(exact):.{DIGITS}g}")
    return int(rounded) if whole and rounded.is_integer() else rounded


_KINDS: dict[str, tuple[Callable[..., list[Number]], str]] = {
    "range": (_range, "[first, last, step]"),
    "lin": (_lin, "[first, last, count]"),
    "log": (_log, "[first, last, count]"),
    "pow2": (_pow2, "[first exponent, last exponent]"),
}
