"""What is asked of the metric family `probes`: the tasks, how their texts are read, and what is fitted."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from orchestrator.config.job import STANDARD_LIBRARY, Part
from orchestrator.config.value_types import Coefficient, NaturalInt, PositiveInt, Text

Pooling = Literal["last", "mean", "max"]
TestShare = Annotated[float, Field(gt=0, lt=1, strict=True)]

SHIPPED_TASKS: dict[str, str] = {
    "in_string": "the token is in a string literal",
    "in_comment": "the token is in a comment",
    "in_decorator": "the token is in a decorator",
    "in_class_body": "the token is in the body of a class",
    "after_return": "the token is in the value of a return statement",
}
"""Tasks made of Python's own source, by name, and when their label is 1."""


class ProbeTask(Part):
    """Where labelled texts are: each label of more than two is a task of its own, against all others."""

    source: Text
    """python:stdlib, one of its tasks (python:stdlib/in_string), a .csv or .jsonl file, a folder of them, or a data
    set id."""
    name: Text | None = None
    """Configuration of a data set id."""
    revision: Text | None = None
    """Branch, tag or commit of a data set id."""
    text_column: Text = "text"
    """Column or JSON key that holds the text."""
    label_column: Text | None = None
    """Column or JSON key of the label; without it `label`, or the one column whose meaning is not known."""
    train_split: Text = "train"
    """Split of a data set id that probes are fitted on."""
    test_split: Text = "test"
    """Split of a data set id that they are measured on."""


def _of_source(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


class ProbesOptions(Part):
    """Options of the family `probes`."""

    tasks: Annotated[
        tuple[Annotated[ProbeTask, BeforeValidator(_of_source)], ...], BeforeValidator(_several), Field(min_length=1)
    ] = (ProbeTask(source=STANDARD_LIBRARY),)
    """Sources of labelled texts: each a name or path alone, or with its columns and splits."""
    max_classes: PositiveInt = 20
    """Of a source with more labels, the most frequent are tasks."""
    train_examples: PositiveInt = 5_000
    """Examples of a source that probes are fitted on, at most; drawn with the seed."""
    test_examples: PositiveInt = 2_000
    """Examples of a source that probes are measured on, at most."""
    test_share: TestShare = 0.2
    """Of a source that does not say which examples are for testing: the share, by the hash of each text."""
    pooling: Pooling = "last"
    """The tokens of a text, or of a labelled word in it, as one: the last token, the mean of latents, the maximum."""
    context_length: PositiveInt = 128
    """Tokens of a text that are read, the first ones."""
    k: tuple[PositiveInt, ...] = (1, 2, 5)
    """Latents of the sparse probes."""
    ridge: Coefficient = 1e-6
    """Weight of w² / 2 in the mean loss of probes of few latents, each standardised."""
    random_directions: NaturalInt | None = None
    """Number of random directions of which the best is the baseline; without it as many as an SAE has latents."""
    bootstraps: PositiveInt = 1_000
    """Draws of which the standard errors and 90% intervals are."""
