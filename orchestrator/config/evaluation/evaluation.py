"""One evaluation: which metric families, on which text, of which SAE. Its canonical JSON is its identity."""

import json
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from orchestrator.config.evaluation.ablation import AblationOptions
from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.evaluation.explanation import ExplanationOptions
from orchestrator.config.evaluation.families import DEFAULT, Family
from orchestrator.config.evaluation.layers import LayersOptions
from orchestrator.config.evaluation.n2g import N2gOptions
from orchestrator.config.evaluation.probes import ProbesOptions
from orchestrator.config.evaluation.structure import StructureOptions
from orchestrator.config.job import DataConfig, Part, SubjectConfig, canonical_text, text_id
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.value_types import Layers, NaturalInt, PositiveInt


class EvaluationPlan(Part):
    """What is asked of every SAE of a request: the content of a file for `orch evaluate --config`."""

    later_fields: ClassVar[tuple[str, ...]] = ("at_layers", "layers")

    metrics: tuple[Family, ...] = DEFAULT
    """Metric families, each measured on its own: what goes wrong in one leaves the others."""
    source: str | None = None
    """Text to measure on, in the words of `data.source`; without it the text an SAE was trained on, held-out part."""
    tokens: PositiveInt | None = None
    """Tokens to measure on: the last ones of the text. Without it, as many as training held out."""
    at_layers: Layers | None = None
    """At which layers of its site an SAE is measured, such as [0, 2, 5], or all; without it where it was trained."""
    seed: NaturalInt = 0
    """Of everything that is drawn: samples, random directions, bootstraps."""
    downstream: DownstreamOptions = DownstreamOptions()
    probes: ProbesOptions = ProbesOptions()
    n2g: N2gOptions = N2gOptions()
    ablation: AblationOptions = AblationOptions()
    structure: StructureOptions = StructureOptions()
    explanation: ExplanationOptions = ExplanationOptions()
    layers: LayersOptions = LayersOptions()

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics names each family once, and at least one")
        return self

    def options(self, family: Family) -> Part | None:
        """Return the options of one family; None of one that takes none."""
        found: Part | None = getattr(self, family, None)
        return found


class EvaluatedSaeRef(Part):
    """The SAE of an evaluation: its row of the table, and which of its job's results it was."""

    id: PositiveInt
    attempt: PositiveInt | None = None
    """None: it was brought in."""


class EvaluationConfig(Part):
    """Everything that decides what an evaluation job measures."""

    plan: EvaluationPlan
    sae: EvaluatedSaeRef
    subject: SubjectConfig
    """The language model, and the place, or places, at which the SAE reads it."""
    data: DataConfig
    """The text that is measured on, and how it is cut into contexts."""
    heldout_tokens: PositiveInt
    """The last tokens of that text: what is measured on."""

    def canonical_json(self) -> str:
        """Return the one JSON text of this config, sorted keys, no spaces."""
        # Their own texts: fields that came later and are unset are in none.
        parts = {name: json.loads(getattr(self, name).part_json) for name in ("plan", "subject", "data")}
        return canonical_text(self.model_dump(mode="json") | parts)

    @cached_property
    def config_id(self) -> str:
        """The sha256 of the canonical JSON, in hex."""
        return text_id(self.canonical_json())

    @property
    def stream_key(self) -> str:
        """Return the sha256 of what SAEs must agree on to share a process: model and text, but not the place."""
        values: dict[str, Any] = {
            "evaluation": {
                "subject": self.subject.model_dump(mode="json", exclude={"hook", "layer", "layers", "site"}),
                "data": self.data.model_dump(mode="json"),
                "heldout_tokens": self.heldout_tokens,
            }
        }
        return text_id(json.dumps(values, sort_keys=True, ensure_ascii=False))


class EvaluatedSae(Part):
    """What an evaluation process is told of an SAE beside its config: where its files lie, and what it is."""

    uri: str
    """Folder in our own format."""
    label: str
    """The shortest selector that means it."""
    facts: dict[str, Any]
    """`SaeFacts.as_json`."""
    trained_on: dict[str, Any] = Field(default_factory=dict)
    """Facts of the attempt that trained it: `subject.sha256`, `tokens.id`. Of an SAE that was brought in: none."""

    @property
    def n_bytes(self) -> int:
        """Return what its encoder and decoder take in float32."""
        facts = self.read_facts()
        return 8 * facts.n_latents * facts.d_model

    def read_facts(self) -> SaeFacts:
        """Return the facts."""
        return SaeFacts.from_json(self.facts)
