"""The two texts of a latent: the one its explanation is made of, and the held-out one it is judged on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import Text
from worker.evaluation.n2g.latent_acts import Firings, find_firings
from worker.sae.inference import InferenceSae

_PASS_TOKENS = 2048


@dataclass(frozen=True)
class DividedText:
    """What the SAEs of one place have in common. A BOS that every context begins with is part of neither text."""

    context: EvaluationContext
    build_tokens: int
    """Tokens before the held-out part, spread evenly over it, that explanations are made of."""

    @property
    def bos(self) -> int | None:
        """Return what every context begins with."""
        return self.context.model()[1].tokens.bos_id

    @property
    def first(self) -> int:
        """Return the column of a document's first token."""
        return 0 if self.bos is None else 1

    @cached_property
    def build(self) -> Text:
        """The text that explanations are made of."""
        _, text = self.context.model()
        return self._without_bos(text.before(-(-self.build_tokens // text.tokens.context_length)))

    @cached_property
    def heldout(self) -> Text:
        """The text they are judged on."""
        return self._without_bos(self.context.model()[1].heldout)

    @cached_property
    def build_activations(self) -> Float[Tensor, "n_contexts context d_model"]:
        """The raw activations of the build text, float32, on the CPU: captured once, kept in the store."""
        of = self.context.of("activations before", contexts=len(self.build))
        return self.context.store.get(of, self._capture)["values"]

    def firings(
        self, sae: InferenceSae, latents: Int[Tensor, " n_chosen"], on_progress: Callable[[float], None]
    ) -> tuple[Firings, Firings]:
        """Return the activations of some latents on the build text, and on the held-out one."""
        build = find_firings(sae, latents, self.build_activations, self.build.is_measured, on_progress)
        heldout = self.context.heldout_activations
        return build, find_firings(sae, latents, heldout, self.heldout.is_measured, on_progress)

    def _without_bos(self, text: Text) -> Text:
        is_measured = text.is_measured.clone()
        is_measured[:, : self.first] = False
        return Text(text.ids, is_measured, text.numbers)

    def _capture(self) -> dict[str, Tensor]:
        size = max(1, _PASS_TOKENS // self.build.ids.shape[1])
        parts = []
        for start in range(0, len(self.build), size):
            self.context.progress("reading text before the held-out part", start / len(self.build))
            parts.append(self.context.activations(self.build.chosen(slice(start, start + size))).cpu())
        return {"values": torch.cat(parts)}


def chosen_latents(
    sae: InferenceSae, asked: int | tuple[int, ...], context: EvaluationContext, *, option: str
) -> Int[Tensor, " n_chosen"]:
    """Return latents in order: those asked for, or as many as asked for, drawn by the seed and the option's name."""
    n_latents = sae.facts.n_latents
    if isinstance(asked, int):
        drawn = torch.randperm(n_latents, generator=context.generator(option))
        return drawn[:asked].sort().values
    return torch.tensor(sorted(set(asked)))
