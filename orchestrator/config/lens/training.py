"""WHAT a lens job trains: one frozen, validated, hashable LensConfig per tuned lens. Its canonical JSON is its id."""

import json
from functools import cached_property
from typing import Annotated, Self

from pydantic import AfterValidator, model_validator

from orchestrator.config.job import (
    DataConfig,
    JobConfig,
    Part,
    SaeConfig,
    StopConfig,
    SubjectConfig,
    TrainingConfig,
    canonical_text,
    text_id,
)
from orchestrator.config.synthetic import is_synthetic
from orchestrator.config.value_types import PositiveFloat, PositiveInt, Share


def _whole_model(subject: SubjectConfig) -> SubjectConfig:
    """Return the subject with every layer read; refuse one that names a place in it, or that is no language model."""
    if is_synthetic(subject.model):
        raise ValueError(f"{subject.model} is no language model: a tuned lens is of one")
    named = [name for name in ("hook", "layer", "layers") if getattr(subject, name) not in (None, "all")]
    if named or subject.site != "resid_post":
        raise ValueError(f"a lens is of the output of every block: leave {(named or ['site'])[0]} out")
    if subject.dtype == "auto":
        raise ValueError("a lens says in which precision its model is read: give float32 or bfloat16, not auto")
    return subject.model_copy(update={"layers": "all"})


class LensOptimizer(Part):
    """Adam at a constant rate; what counts is the running mean of the weights, so no rate has to decay."""

    lr: PositiveFloat = 1e-3
    """Learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class LensTraining(Part):
    """The budget and the batches of a lens. Every length is in tokens of text."""

    batch_tokens: PositiveInt = 2_048
    """Tokens per optimiser step, whole contexts; each gives a vector at every layer."""
    max_tokens: PositiveInt = 20_000_000
    """The budget; a job that reaches it unconverged is censored."""
    heldout_tokens: PositiveInt = 16_384
    """The last tokens of the text: never trained on, the curve is measured there."""
    first_point_tokens: PositiveInt = 8_192
    """First point of the curve; then four per doubling."""


class LensConfig(Part):
    """Everything that decides what a lens job trains."""

    subject: Annotated[SubjectConfig, AfterValidator(_whole_model)] = SubjectConfig(layers="all")
    data: DataConfig = DataConfig()
    optimizer: LensOptimizer = LensOptimizer()
    training: LensTraining = LensTraining()
    stop: StopConfig = StopConfig()

    @model_validator(mode="after")
    def _whole_contexts(self) -> Self:
        batch, context = self.training.batch_tokens, self.data.context_length
        if batch % context:
            raise ValueError(f"training.batch_tokens = {batch} is not a whole number of contexts of {context} tokens")
        if self.training.max_tokens < batch:
            raise ValueError(f"training.max_tokens = {self.training.max_tokens} is less than one batch of {batch}")
        if self.data.activations != "stream":
            raise ValueError("data.activations: a lens reads every layer as it goes, and no cache")
        return self

    def canonical_json(self) -> str:
        """Return the one JSON text of this config, sorted keys, no spaces."""
        parts = {name: json.loads(getattr(self, name).part_json) for name in type(self).model_fields}
        return canonical_text(parts)

    @property
    def reading(self) -> JobConfig:
        """Return the config of a training job that reads the same text, divides it alike, and takes as large steps."""
        batch = self.training.batch_tokens
        training = TrainingConfig(
            batch_tokens=batch, shuffle_tokens=batch, max_tokens=self.training.max_tokens,
            heldout_tokens=self.training.heldout_tokens,
        )  # fmt: skip
        return JobConfig(subject=self.subject, data=self.data, sae=SaeConfig(k=1), training=training)

    @cached_property
    def config_id(self) -> str:
        """The sha256 of the canonical JSON, in hex."""
        return text_id(self.canonical_json())
