"""WHAT is trained: one frozen, validated, hashable JobConfig per sparse autoencoder."""

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property, lru_cache
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from orchestrator.config import synthetic
from orchestrator.config.activation_functions import ACTIVATIONS, Activation, check_encode_dtype
from orchestrator.config.sites import SITES, Site
from orchestrator.config.sizes import dead_window, latents
from orchestrator.config.value_types import Coefficient, Layers, NaturalInt, PositiveFloat, PositiveInt, Share, Text
from orchestrator.errors import ConfigError

Normalize = Literal["unit", "layer_norm", "none"]
Dtype = Literal["float32", "bfloat16", "float16"]
EncodeDtype = Dtype | Literal["float8_e4m3"]

SHIPPED_SUBJECT = "shipped:stdlib-gpt2"
STANDARD_LIBRARY = "python:stdlib"


def _as_text(value: Any) -> Any:
    """Return a number as the text that it was written for: a job's number names its lens."""
    return str(value) if type(value) is int else value


def _or_ours(known: str) -> AfterValidator:
    """Refuse another word than the one of ours that has its prefix."""

    def check(text: str) -> str:
        if text.startswith(known.partition(":")[0] + ":") and text != known:
            raise ValueError(f"there is no {text!r}; there is {known!r}")
        return text

    return AfterValidator(check)


def canonical_text(values: Mapping[str, Any]) -> str:
    """Return the one JSON text of a config's values: sorted keys, no spaces."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text_id(text: str) -> str:
    """Return the id of a config by its canonical text: the sha256 in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


class Part(BaseModel):
    """A frozen part of a config; unknown keys are refused. Configs of one sweep share the parts that are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    later_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that came after configs had been stored: at their defaults they change no id."""

    @cached_property
    def part_json(self) -> str:
        """The one JSON text of this part, sorted keys, no spaces: every field, but `later_fields` at their defaults."""
        return canonical_text(self.model_dump(mode="json", exclude=self._unset()))

    def __hash__(self) -> int:
        return hash(self.part_json)

    def _unset(self) -> dict[str, Any]:
        """Return what its text leaves out, of this part and of the parts in it."""
        fields = type(self).model_fields
        found = {name: True for name in self.later_fields if getattr(self, name) == fields[name].default}
        inner = {name: value._unset() for name, value in self if isinstance(value, Part)}
        return {name: unset for name, unset in inner.items() if unset} | found

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, of which nothing that was derived from the values is kept."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(self).model_fields.keys():
            del copy.__dict__[name]
        return copy


class SubjectConfig(Part):
    """The language model whose activations are read, and where in it."""

    later_fields: ClassVar[tuple[str, ...]] = ("layers",)

    model: Annotated[Text, AfterValidator(synthetic.canonical), _or_ours(SHIPPED_SUBJECT)] = SHIPPED_SUBJECT
    """Model id, a folder, the model that ships with this project, or a distribution: synthetic:gaussian?d_model=64."""
    revision: Text | None = None
    """Branch, tag or commit of a model id."""
    dtype: Dtype | Literal["auto"] = "float32"
    """Precision of the forward pass; auto is bfloat16 where a job first starts on a device that is faster at it."""
    hook: Text | None = None
    """Module whose output is read, by its name in the model; instead of layer and site."""
    layer: NaturalInt | None = None
    """Block, counted from 0; without hook and layer: the block at three quarters of the depth."""
    layers: Layers | None = None
    """Blocks whose activations one SAE reads, such as [0, 2, 5], or all; instead of layer and hook."""
    site: Site = Field(
        default="resid_post",
        description="What is read at that block. "
        + "; ".join(f"{name}: {site.meaning}" for name, site in SITES.items()),
    )
    trust_remote_code: bool = False
    """Run code that comes with the model. Never implied."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        named = [name for name in ("hook", "layer", "layers") if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} both name a place: give one of them")
        synthetic.check_place(self, self.model)
        return self

    @property
    def has_model_width(self) -> bool:
        """Return whether the activations are as wide as the residual stream; of a named module only the model tells."""
        return self.hook is None and SITES[self.site].has_model_width

    def settled(self, dtype: str | None) -> Self:
        """Return the config with what `dtype: auto` came to; without that, and of a given precision, as it is."""
        return self if dtype is None or self.dtype != "auto" else self.model_copy(update={"dtype": dtype})

    def places(self, n_blocks: int) -> tuple[Self, ...]:
        """Return a config of each single place that is read in a model of so many blocks: itself, unless `layers`."""
        if self.layers is None:
            return (self,)
        layers = range(n_blocks) if self.layers == "all" else self.layers
        return tuple(self.model_copy(update={"layers": None, "layer": layer}) for layer in layers)


class DataConfig(Part):
    """The text the subject reads."""

    source: Annotated[Text, _or_ours(STANDARD_LIBRARY)] = STANDARD_LIBRARY
    """A data set id, a path or glob of .txt, .jsonl or .parquet files, or python:stdlib, Python's own source."""
    name: Text | None = None
    """Configuration of a data set id."""
    revision: Text | None = None
    """Branch, tag or commit of a data set id."""
    split: Text = "train"
    """Split of a data set id."""
    text_column: Text = "text"
    """Column or JSON key that holds the text."""
    context_length: PositiveInt = 128
    """Tokens per context."""
    prepend_bos: bool = False
    """Start every context with the tokenizer's BOS token."""
    special_tokens: Literal["mask", "train"] = "mask"
    """Leave special-token positions out of training and metrics, or keep them in."""
    max_tokens: PositiveInt | None = None
    """Pack no more than this many tokens."""
    seed: NaturalInt = 0
    """Order of the contexts and of the activations in a window: jobs of one seed can share one stream."""
    activations: Literal["stream", "cache"] = "stream"
    """Capture activations as training goes, or keep them on disk for the next job."""


class SaeConfig(Part):
    """The sparse autoencoder."""

    later_fields: ClassVar[tuple[str, ...]] = ("target_l0", "lens")

    activation: Activation = "topk"
    """What keeps the latents sparse."""
    n_latents: PositiveInt | None = None
    """Number of latents; without it, expansion × d_model."""
    expansion: PositiveInt | None = None
    """Latents per dimension of the activations; 8 if neither is given."""
    target_l0: PositiveInt | None = None
    """L0 that training leads relu or jumprelu to, by the penalty; it gives k, too."""
    k: PositiveInt = 32
    """Latents kept per token."""
    k_aux: PositiveInt | None = None
    """Dead latents in AuxK; by default the largest power of two ≤ d_model / 2."""
    aux_coef: Coefficient = 1 / 32
    """Weight α of AuxK in the loss; 0 turns it off."""
    sparsity_coef: PositiveFloat | Literal["auto"] = 1e-3
    """Weight λ of the L1 penalty (relu) or of the L0 penalty (jumprelu); auto with target_l0."""
    normalize: Normalize = "unit"
    """How each activation vector is normalised."""
    lens: Annotated[Text | None, BeforeValidator(_as_text)] = None
    """Tuned lens that maps the residual stream before it is normalised: its name, its job's number, or its content id,
    which is what is stored."""

    @model_validator(mode="before")
    @classmethod
    def _follow_target(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("target_l0") is None:
            return values
        return {"k": values["target_l0"], "sparsity_coef": "auto", **values}

    @model_validator(mode="after")
    def _one_sparsity(self) -> Self:
        target, coef = self.target_l0, self.sparsity_coef
        if target is None:
            if coef == "auto":
                raise ValueError("sparsity_coef = auto is found for an L0: give target_l0")
            return self
        if not ACTIVATIONS[self.activation].is_penalised:
            raise ValueError(f"target_l0 is for relu and jumprelu: the L0 of {self.activation} is its k")
        if coef != "auto":
            raise ValueError(f"sparsity_coef = {coef} and target_l0 = {target} both set the sparsity: give one of them")
        if self.k != target:
            raise ValueError(f"k = {self.k} is not target_l0 = {target}: leave k out, it follows")
        return self

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.n_latents is not None and self.expansion is not None:
            raise ValueError("n_latents and expansion both set the size: give one of them")
        if self.n_latents is not None and self.k > self.n_latents:
            raise ValueError(f"k = {self.k} is above n_latents = {self.n_latents}: keep at most every latent")
        return self

    def latents(self, d_model: int) -> int:
        """Return the number of latents at a given width.

        Raises:
            ConfigError: k is above it.
        """
        n_latents = latents(self.n_latents, self.expansion, d_model)
        if self.k > n_latents:
            raise ConfigError(
                f"sae.k = {self.k} is above the {n_latents} latents of {self.expansion or 8} × d_model {d_model}",
                hint="Keep at most every latent: lower sae.k, or raise sae.expansion or sae.n_latents.",
            )
        return n_latents

    def aux_latents(self, d_model: int) -> int:
        """Return k_aux: as given, else the largest power of two ≤ d_model / 2."""
        return self.k_aux or 2 ** max(0, int(math.log2(max(1, d_model // 2))))


class OptimizerConfig(Part):
    """Adam, and what surrounds it."""

    lr: PositiveFloat | Literal["auto"] = "auto"
    """Learning rate; auto scales with n_latents, d_model and batch_tokens."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: PositiveFloat = 6.25e-10
    warmup_tokens: NaturalInt = 0
    """Linear warm-up of the learning rate."""
    decay_tokens: NaturalInt = 0
    """Linear decay to zero over the last tokens of the budget."""
    clip_norm: PositiveFloat | None = None
    """Global norm the gradient is clipped to."""
    ema: Share | Literal["auto"] = "auto"
    """Coefficient of the weights' moving average, per step; auto grows with the steps taken, to 0.999."""


class TrainingConfig(Part):
    """The budget and the order of the data. Every length is in tokens."""

    batch_tokens: PositiveInt = 2048
    """Tokens of text per optimiser step; each gives a vector at every layer that is read."""
    max_tokens: PositiveInt = 20_000_000
    """The budget; a job that reaches it unconverged is censored."""
    dead_after_tokens: PositiveInt | Literal["auto"] = "auto"
    """A latent silent for this many training tokens is dead; auto is 10 million, less where the budget is small."""
    shuffle_tokens: PositiveInt = 65_536
    """Window in which activations are shuffled."""
    heldout_tokens: PositiveInt = 16_384
    """The last tokens of the text: never trained on, every metric is measured there."""
    first_point_tokens: PositiveInt = 8_192
    """First point of the curve; then four per doubling."""
    seed: NaturalInt = 0
    """Initial weights."""
    encode_dtype: EncodeDtype = "float32"
    """Precision of the encoder's product; what it selects is computed again in float32, and parameters stay float32."""

    @model_validator(mode="after")
    def _whole_batches(self) -> Self:
        if self.shuffle_tokens % self.batch_tokens:
            raise ValueError(
                f"shuffle_tokens = {self.shuffle_tokens} is not a whole number of batches of {self.batch_tokens} tokens"
            )
        if self.max_tokens < self.batch_tokens:
            raise ValueError(f"max_tokens = {self.max_tokens} is less than one batch of {self.batch_tokens} tokens")
        return self


class StopConfig(Part):
    """When a job has converged."""

    rule: Literal["plateau", "max_tokens"] = "plateau"
    """plateau: three evaluations in a row below epsilon; max_tokens: train the whole budget."""
    epsilon: PositiveFloat = 0.005
    """Relative fall of the loss against the loss at half the tokens."""


class JobConfig(Part):
    """Everything that decides what a job trains; its canonical JSON is its identity."""

    subject: SubjectConfig = SubjectConfig()
    data: Annotated[DataConfig, AfterValidator(synthetic.check_text)] = DataConfig()
    sae: SaeConfig = SaeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    stop: StopConfig = StopConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_encode_dtype(self.sae.activation, self.training.encode_dtype)
        lengths = {name: getattr(self.optimizer, name) for name in ("warmup_tokens", "decay_tokens")}
        total, budget = sum(lengths.values()), self.training.max_tokens
        if total > budget:
            told = " + ".join(f"optimizer.{name} = {value}" for name, value in lengths.items() if value)
            raise ValueError(
                f"{told} is longer than training.max_tokens = {budget}: the job would never train at its learning rate"
            )
        return self

    @model_validator(mode="after")
    def _lens_of_stream(self) -> Self:
        if self.sae.lens is None:
            return self
        if synthetic.is_synthetic(self.subject.model):
            raise ValueError(f"sae.lens means nothing to {self.subject.model}, which is no language model")
        if self.subject.hook is not None or self.subject.site != "resid_post":
            place = f"hook = {self.subject.hook}" if self.subject.hook else f"site = {self.subject.site}"
            raise ValueError(
                f"sae.lens maps the output of a block, and subject.{place} reads another place: set subject.site: "
                "resid_post, or leave sae.lens out"
            )
        return self

    def dead_after_tokens(self, d_model: int) -> int:
        """Return after how many silent tokens a latent is dead: `dead_window` at a given width."""
        given, n_latents = self.training.dead_after_tokens, self.sae.latents(d_model)
        return dead_window(given, n_latents=n_latents, k=self.sae.k, max_tokens=self.training.max_tokens)

    def settled(self, dtype: str | None) -> Self:
        """Return the config as it was trained: `SubjectConfig.settled`."""
        subject = self.subject.settled(dtype)
        return self if subject is self.subject else self.model_copy(update={"subject": subject})

    def canonical_json(self) -> str:
        """Return the one JSON text of this config, sorted keys, no spaces: its parts' texts."""
        return _TEXT % tuple([part.part_json for part in _PARTS(self)])

    @cached_property
    def config_id(self) -> str:
        """The sha256 of the canonical JSON, in hex; a config read from a store keeps the id it was stored under."""
        return text_id(self.canonical_json())

    @property
    def stream_key(self) -> str:
        """Return the sha256 of what decides the stream of activations, but for the place they are read at."""
        training = self.training
        return _stream_key(
            self.subject, self.data, training.batch_tokens, training.shuffle_tokens, training.heldout_tokens
        )


_PARTS = attrgetter(*sorted(JobConfig.model_fields))
_TEXT = "{" + ",".join(f'"{name}":%s' for name in sorted(JobConfig.model_fields)) + "}"


@lru_cache(maxsize=256)
def _stream_key(subject: SubjectConfig, data: DataConfig, batch: int, shuffle: int, heldout: int) -> str:
    values = {
        "subject": subject.model_dump(mode="json", exclude={"hook", "layer", "layers", "site"}),
        "data": data.model_dump(mode="json"),
        "training": {"batch_tokens": batch, "shuffle_tokens": shuffle, "heldout_tokens": heldout},
    }
    return text_id(json.dumps(values, sort_keys=True, ensure_ascii=False))
