"""What is known of an SAE beside its weights: the same words for our own and for every foreign format."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from orchestrator.errors import ConfigError

Selection = Literal["topk", "batchtopk", "jumprelu", "relu", "gated"]
"""How latents are chosen: k per token, one threshold for all, one per latent, what is positive, a gate."""

InputNormalization = Literal["none", "unit", "layer_norm", "constant_norm", "fixed"]
"""What is done to each vector before it is encoded.

unit: centred, to length 1; layer_norm: centred, to standard deviation 1; constant_norm: to length √d_model, not
centred; fixed: multiplied by one number measured on a data set.
"""


@dataclass(frozen=True, kw_only=True)
class SaeFacts:
    """What an SAE is and what its files state of it; None: they do not say."""

    selection: Selection
    d_model: int
    n_latents: int
    normalize: InputNormalization
    subtracts_bias: bool
    """Whether the decoder's bias is subtracted from the input before it is encoded."""
    dtype: str
    """Of the stored weights, as torch names it without its prefix."""
    k: int | None = None
    """Latents per token, where the selection has such a number (of batchtopk their mean)."""
    subject: str | None = None
    """The language model: a hub name or a folder."""
    revision: str | None = None
    layers: tuple[int, ...] = ()
    """Blocks whose activations it reads, counted from 0; several: a multi-layer SAE; none: not said."""
    site: str | None = None
    """Which activation of the block, in this program's words (`config.sites`); None: not said, or another."""
    hook_point: str | None = None
    """The place as the files name it, in whatever words."""
    target_hook_point: str | None = None
    """Of a transcoder: the place it predicts, as the files name it. None: it reconstructs its input."""
    context_length: int | None = None
    prepend_bos: bool | None = None
    lens: str | None = None
    """Content id of the tuned lens in whose space it encodes and decodes; None: it reads the activations themselves."""
    stated_fvu: float | None = None
    stated_l0: float | None = None

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another place than the one it reads."""
        return self.target_hook_point is not None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {**asdict(self), "layers": list(self.layers)}

    def columns(self) -> dict[str, Any]:
        """Return the fields that the table of SAEs has columns for; the lens is that of the job's config."""
        return {name: value for name, value in self.as_json().items() if name != "lens"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SaeFacts":
        """Return the facts that `as_json` wrote; fields of later versions are left out.

        Raises:
            ConfigError: a field is missing or a word is not known.
        """
        known = {field.name for field in fields(cls)}
        try:
            facts = cls(
                **{key: value for key, value in data.items() if key in known} | {"layers": tuple(data["layers"])}
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this is no description of an SAE: {error}") from error
        for word, words in ((facts.selection, get_args(Selection)), (facts.normalize, get_args(InputNormalization))):
            if word not in words:
                raise ConfigError(f"{word!r} is not known of SAEs (known: {', '.join(words)})")
        return facts
