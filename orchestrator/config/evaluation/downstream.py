"""What is asked of the metric family `downstream`."""

import csv
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from orchestrator.bounded_file import read_text
from orchestrator.config.job import Part
from orchestrator.config.text_files import in_folder
from orchestrator.config.value_types import Coefficient, PositiveFloat, PositiveInt

_COLUMNS = ("compute", "ce")


def _table(value: Any, info: ValidationInfo) -> Any:
    """Read a table from the CSV file whose path is given: what is kept, and hashed, is its content.

    A relative path is read from the `folder` of the context of validation, else from the folder one is in.
    """
    if not isinstance(value, str):
        return value
    try:
        place = in_folder(value, (info.context or {}).get("folder"))
        rows = list(csv.DictReader(read_text(place, what="a table").splitlines()))
        if not rows:
            raise ValueError("no row")
        return tuple(tuple(float(row[name]) for name in _COLUMNS) for row in rows)
    except OSError as error:
        raise ValueError(f"cannot read {value}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{value} is no CSV file with numbers in the columns {' and '.join(_COLUMNS)}") from error


Table = Annotated[
    tuple[tuple[PositiveFloat, PositiveFloat], ...], BeforeValidator(_table, json_schema_input_type=str), Field()
]


class FamilyLaw(Part):
    """CE = E + A·C^−α over the models of one family; given, or fitted to a table of them."""

    e: Coefficient | None = None
    """E, in nats per token."""
    alpha: PositiveFloat | None = None
    """α. A is not needed."""
    table: Table = ()
    """(pretraining compute in any unit, cross-entropy) of at least four models, or the path of a CSV file of them."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        is_given = self.e is not None and self.alpha is not None
        if is_given == bool(self.table) or (self.table and (self.e is not None or self.alpha is not None)):
            raise ValueError("give e and alpha, or a table to fit them to")
        if self.table and len({compute for compute, _ in self.table}) < 4:
            raise ValueError("a law of three coefficients is fitted to the table of at least four models")
        return self


class DownstreamOptions(Part):
    """Options of the family `downstream`."""

    later_fields: ClassVar[tuple[str, ...]] = ("released_lens",)

    test_k: tuple[PositiveInt, ...] = ()
    """Also with so many latents kept per token instead of the k of training (progressive codes)."""
    replaced_apart: bool = False
    """Also with the first position of each context replaced alone, and with all but the first."""
    random_error: bool = False
    """Also with an error of the same length in a random direction: what one as large costs that means nothing."""
    refined: bool = False
    """Also with those values of the active latents that reconstruct best: how much an activation function shrinks."""
    released_lens: bool = False
    """Of an SAE in the space of a tuned lens, also what mlsae's released code measures: to compare with its numbers."""
    compute_curve: Table = ()
    """Checkpoints of the same model: (pretraining compute in any unit, cross-entropy on this text), or a CSV file."""
    compute_law: FamilyLaw | None = None
    """The law of the model's family, on this text."""

    @model_validator(mode="after")
    def _enough_checkpoints(self) -> Self:
        if self.compute_curve and len({compute for compute, _ in self.compute_curve}) < 2:
            raise ValueError("compute_curve needs at least two checkpoints")
        return self
