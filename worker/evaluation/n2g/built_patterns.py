"""The patterns of some latents of an SAE: activations are drawn, and a pattern is found of each."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from torch import Tensor

from orchestrator.config.evaluation.n2g import N2gOptions
from worker.evaluation.metric import SubjectSae
from worker.evaluation.n2g.divided_text import DividedText
from worker.evaluation.n2g.latent_acts import Firings
from worker.evaluation.n2g.pad import default_pad
from worker.evaluation.n2g.patterns import Example, find_patterns
from worker.evaluation.n2g.samples import draw
from worker.evaluation.n2g.short_texts import ShortTexts
from worker.evaluation.n2g.trie import Pattern


class Built(NamedTuple):
    """The patterns of some latents, and what finding them took."""

    by_latent: list[list[Pattern]]
    """None of one that is never active on the build text."""
    tokens_run: int
    """Tokens the model read for it, padding among them."""
    pad: int
    """The token that stood for no text in particular."""


def build_patterns(
    each: SubjectSae, latents: Int[Tensor, " n_chosen"], texts: DividedText, firings: Firings, *, options: N2gOptions
) -> Built:
    """Find the patterns of each of some latents."""
    context, numbers = texts.context, latents.numpy()
    subject, _ = context.model()
    pad = default_pad(subject.tokenizer) if options.pad_token is None else options.pad_token
    drawn = draw(firings, numbers, options.activations, seed=context.config.plan.seed)
    ids, width = texts.build.ids.numpy(), texts.build.ids.shape[1]
    rows, columns = np.divmod(drawn.positions, width)
    examples = [
        Example(int(numbers[slot]), ids[row, texts.first : column + 1], float(value))
        for row, column, slot, value in zip(rows, columns, drawn.slots, drawn.values, strict=True)
    ]
    phase = f"n2g: patterns of {each.label}"
    short = ShortTexts(subject, each.sae, bos=texts.bos, on_progress=lambda share: context.progress(phase, share))
    found = find_patterns(short, examples, options, pad=pad)
    by_latent: list[list[Pattern]] = [[] for _ in numbers]
    for slot, pattern in zip(drawn.slots, found, strict=True):
        by_latent[slot].append(pattern)
    return Built(by_latent, short.tokens_run, pad)
