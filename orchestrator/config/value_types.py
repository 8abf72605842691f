"""The kinds of values that fields of configs have: whole and bounded numbers, text that can be stored, layers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

_MOST = 2**53  # beyond it a float such as 200e6 would no longer name one integer


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character cannot be stored")
    return text


def _layers(value: Any) -> Any:
    """Refuse what names no layers, or one of them twice; return them in their order in the model."""
    if value is None or value == "all":
        return value
    if not isinstance(value, list | tuple) or not all(type(one) is int and 0 <= one <= _MOST for one in value):
        raise ValueError("must be all, or a list of blocks counted from 0, such as [0, 2, 5]")
    if not value:
        raise ValueError("names no layer: give all, or a list of blocks counted from 0, such as [0, 2, 5]")
    repeated = sorted({one for one in value if value.count(one) > 1})
    if repeated:
        raise ValueError(f"names layer {repeated[0]} twice: each is read once")
    return tuple(sorted(value))


PositiveInt = Annotated[int, Field(gt=0, le=_MOST, strict=True), BeforeValidator(_whole)]
NaturalInt = Annotated[int, Field(ge=0, le=_MOST, strict=True), BeforeValidator(_whole)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_storable)]
Layers = Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_layers)]
