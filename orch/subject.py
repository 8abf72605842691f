"""The language model that an SAE reads: text to activations at its place, and runs with something else put there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar, cast, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from orch.placement import device_of
from orchestrator.config.job import JobConfig, SubjectConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.sae_reading import config_of
from orchestrator.config.synthetic import is_synthetic
from orchestrator.errors import ConfigError, SubjectError
from worker.subject import model

_Result = TypeVar("_Result")
Patch = Callable[[Tensor], Tensor]
"""An SAE, or any function: activations (n_tokens, d_model) to what is put in their place, of the same shape."""


class Reading(NamedTuple):
    """What is read, and how its text becomes tokens."""

    subject: SubjectConfig
    prepend_bos: bool


class Run(NamedTuple):
    """What the whole model made of a text."""

    token_ids: Int[Tensor, " n_tokens"]
    logits: Float[Tensor, "n_tokens vocabulary"]
    losses: Float[Tensor, " n_predicted"]
    """Cross-entropy of each token after the first given those before it, in nats; computed in float32."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy per predicted token, in nats."""
        return float(self.losses.mean())


def of_job(config: JobConfig) -> Reading:
    """Return what a job reads.

    Raises:
        SubjectError: it reads no language model.
    """
    if is_synthetic(config.subject.model):
        raise SubjectError(f"{config.subject.model} is no language model: no text can be run through it")
    return Reading(config.subject, config.data.prepend_bos)


def of_facts(facts: SaeFacts) -> Reading:
    """Return what an SAE reads by what its files say of it.

    Raises:
        SubjectError: they do not say which model and place, or it reads several.
        ConfigError: what they say does not fit together.
    """
    return of_job(config_of(facts, {}))


@dataclass(frozen=True)
class Subject:
    """A language model at the place an SAE reads, with its tokenizer.

    Text is a str, which becomes tokens as it did in training: no special tokens but a BOS token in front where
    `prepend_bos` is true (`data.prepend_bos`). Or it is token ids, which are taken as they are: a list of int, or a
    tensor (n_tokens). Of a list of texts there is a list of answers. Training reads text in contexts of
    `data.context_length`, and where `data.special_tokens` is mask, as by default, it leaves out the positions of
    special tokens: what an SAE says of a BOS token, it was not trained to say.
    """

    view: model.Subject
    """The loaded model and its hook point."""
    prepend_bos: bool

    @classmethod
    def load(cls, reading: Reading, *, device: str | torch.device = "cpu") -> Self:
        """Load a model and its tokenizer.

        Raises:
            SubjectError: there is no such model, or it cannot be used.
            ConfigError: it has no such place, or the device is none.
        """
        return cls(model.load(reading.subject, device_of(device)), reading.prepend_bos)

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.view.d_model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, of transformers."""
        return self.view.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.view.device

    def token_ids(self, text: str | Sequence[int] | Tensor) -> Int[Tensor, " n_tokens"]:
        """Return the ids of a text's tokens.

        Raises:
            ConfigError: there are none, more than the model reads at once, or one that it does not know.
        """
        if isinstance(text, str):
            ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            found = torch.tensor([self.tokenizer.bos_token_id, *ids] if self.prepend_bos else ids, dtype=torch.int64)
        else:
            found = _whole_numbers(text)
        self._check(found)
        return found.to(self.device, torch.int64)

    def tokens(self, text: str | Sequence[int] | Tensor) -> list[str]:
        """Return a text's tokens as text, one for each position."""
        return [self.tokenizer.decode([number]) for number in self.token_ids(text).tolist()]

    @overload
    def activations(self, text: str | Sequence[int] | Tensor) -> Tensor: ...
    @overload
    def activations(self, text: list[str] | tuple[str, ...]) -> list[Tensor]: ...
    def activations(self, text: str | Sequence[str] | Sequence[int] | Tensor) -> Tensor | list[Tensor]:
        """Return the raw activations at the SAE's place: (n_tokens, d_model), float32; of several texts a list.

        Raises:
            ConfigError: as `token_ids`.
        """
        return self._each(text, lambda ids: model.capture(self.view, ids[None])[0])

    @overload
    def run(self, text: str | Sequence[int] | Tensor, patch: Patch | None = None) -> Run: ...
    @overload
    def run(self, text: list[str] | tuple[str, ...], patch: Patch | None = None) -> list[Run]: ...
    def run(self, text: str | Sequence[str] | Sequence[int] | Tensor, patch: Patch | None = None) -> Run | list[Run]:
        """Run the whole model; with a patch, such as an SAE, on its reconstruction in place of the activations.

        The patch is made at every position. `run(text, sae).loss - run(text).loss` is what it costs, in nats per token.

        Raises:
            ConfigError: as `token_ids`; or the SAE is of another width, on another device, or predicts another place.
        """
        if isinstance(patch, torch.nn.Module):
            self._check_sae(patch)
        return self._each(text, lambda ids: self._run(ids, patch))

    def _run(self, ids: Tensor, patch: Patch | None) -> Run:
        logits = model.run_patched([self.view], ids[None], [lambda x: x if patch is None else patch(x[0])[None]])[0]
        return Run(ids, logits, functional.cross_entropy(logits[:-1].float(), ids[1:], reduction="none"))

    def _each(
        self, text: str | Sequence[str] | Sequence[int] | Tensor, answer: Callable[[Tensor], _Result]
    ) -> _Result | list[_Result]:
        if not isinstance(text, str | Tensor) and len(text) and all(isinstance(one, str) for one in text):
            return [answer(self.token_ids(one)) for one in cast(Sequence[str], text)]
        return answer(self.token_ids(cast(str, text)))

    def _check(self, ids: Tensor) -> None:
        if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool or not len(ids):
            raise ConfigError(
                f"a text has token ids of shape {tuple(ids.shape)} and type {str(ids.dtype).removeprefix('torch.')}",
                hint="Give a text that is not empty, or whole numbers, one for each token.",
            )
        most = self.view.max_context
        if most is not None and len(ids) > most:
            raise ConfigError(f"the text has {len(ids)} tokens, and the model reads {most} at once", hint="Cut it.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.view.vocabulary:
            raise ConfigError(
                f"token ids go from 0 to {self.view.vocabulary - 1}: got {int(ids.min())}, {int(ids.max())}"
            )

    def _check_sae(self, sae: torch.nn.Module) -> None:
        weights: Any = getattr(sae, "W_dec", None)
        if weights is None:
            return
        if weights.device.type != self.device.type:
            raise ConfigError(
                f"the SAE is on {weights.device}, and the model on {self.device}", hint="sae.to(subject.device)"
            )
        if weights.shape[1] != self.d_model:
            raise ConfigError(
                f"the SAE is of {weights.shape[1]} dimensions, and {self.view.config.model} has {self.d_model} there",
                hint="Give the subject of the same SAE.",
            )
        lens = getattr(getattr(sae, "facts", None), "lens", None)
        if lens is not None:
            raise ConfigError(
                f"the SAE encodes and decodes in the space of the tuned lens {lens[:12]}, and a subject gives what the "
                "model computes",
                hint="Its scores, in lens space and put back into the model: orch evaluate",
            )
        if getattr(sae, "is_transcoder", False):
            raise ConfigError("the SAE is a transcoder: what it predicts belongs in another place than it reads")


def _whole_numbers(text: Sequence[int] | Tensor) -> Tensor:
    try:
        return torch.as_tensor(text)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"this is neither text nor token ids: {error}", hint="Give a str, or whole numbers."
        ) from None
