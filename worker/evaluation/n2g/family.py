"""Measure how far short patterns of tokens predict when latents are active (N2G)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.evaluation.n2g import N2gOptions
from orchestrator.config.job import Part
from orchestrator.errors import ConfigError, MachineError, OrchError
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import Text
from worker.evaluation.metric import Measured, NotMeasured, SubjectSae
from worker.evaluation.n2g import agreement
from worker.evaluation.n2g.latent_acts import Firings, find_firings
from worker.evaluation.n2g.patterns import Example, find_patterns
from worker.evaluation.n2g.samples import draw
from worker.evaluation.n2g.short_texts import ShortTexts
from worker.evaluation.n2g.trie import FORMAT, IndexedText, Pattern, Trie
from worker.sae.inference import InferenceSae

FILE = "n2g.json"
_PASS_TOKENS = 2048
_PADS = (" _", "_", " ")
"""Texts whose token stands for no text in particular; the first is what the paper's authors used (GPT-2's id 4808)."""


def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Measure precision, recall and F1 of the patterns of some latents of each SAE."""
    asked = options if isinstance(options, N2gOptions) else N2gOptions()
    texts = N2gTexts(context, asked)
    for each in saes:
        try:
            yield _measured(each, texts)
        except MachineError:
            raise
        except (OrchError, RuntimeError) as error:
            yield NotMeasured(each.job_id, error)


@dataclass(frozen=True)
class N2gTexts:
    """What the SAEs have in common: the text patterns are built of, the held-out text, and the model at both."""

    context: EvaluationContext
    options: N2gOptions

    @cached_property
    def first(self) -> int:
        """Column of a document's first token: a BOS that every context begins with is no part of it."""
        return 0 if self.bos is None else 1

    @property
    def bos(self) -> int | None:
        """Return what every context begins with."""
        return self.context.model()[1].tokens.bos_id

    @cached_property
    def build(self) -> Text:
        """The text patterns are built of."""
        _, text = self.context.model()
        return self._without_bos(text.before(-(-self.options.build_tokens // text.tokens.context_length)))

    @cached_property
    def heldout(self) -> Text:
        """The text they are measured on."""
        return self._without_bos(self.context.model()[1].heldout)

    @cached_property
    def heldout_index(self) -> IndexedText:
        """The held-out text, for prediction."""
        return IndexedText(self.heldout.ids.numpy(), self.first)

    @cached_property
    def build_activations(self) -> Float[Tensor, "n_contexts context d_model"]:
        """The raw activations of the build text, float32, on the CPU: captured once, kept in the store."""
        of = self.context.of("activations before", contexts=len(self.build))
        return self.context.store.get(of, self._capture)["values"]

    @cached_property
    def pad(self) -> int:
        """The token that is put before a text, or in the place of one."""
        subject, _ = self.context.model()
        pad = self.options.pad_token
        if pad is None:
            return default_pad(subject.tokenizer)
        if pad >= subject.vocabulary:
            raise ConfigError(
                f"n2g.pad_token = {pad}, and the model knows {subject.vocabulary} tokens",
                hint="Leave n2g.pad_token out, or give the id of a token that stands for no text in particular.",
            )
        return pad

    def chosen_latents(self, sae: InferenceSae) -> Int[Tensor, " n_chosen"]:
        """Return the latents that are measured, in order: those asked for, or some drawn by the seed.

        Raises:
            ConfigError: the SAE has no such latent.
        """
        asked, n_latents = self.options.latents, sae.facts.n_latents
        if isinstance(asked, int):
            drawn = torch.randperm(n_latents, generator=self.context.generator("n2g latents"))
            return drawn[:asked].sort().values
        if not asked or max(asked) >= n_latents:
            raise ConfigError(
                f"n2g.latents names {max(asked, default='none')}, and the SAE has latents 0 to {n_latents - 1}",
                hint="Give numbers of latents that it has, or how many are to be drawn.",
            )
        return torch.tensor(sorted(set(asked)))

    def _without_bos(self, text: Text) -> Text:
        is_measured = text.is_measured.clone()
        is_measured[:, : self.first] = False
        return Text(text.ids, is_measured, text.numbers)

    def _capture(self) -> dict[str, Tensor]:
        size = max(1, _PASS_TOKENS // self.build.ids.shape[1])
        parts = []
        for start in range(0, len(self.build), size):
            self.context.progress("n2g: reading text", start / len(self.build))
            parts.append(self.context.activations(self.build.chosen(slice(start, start + size))).cpu())
        return {"values": torch.cat(parts)}


def default_pad(tokenizer: Any) -> int:
    """Return the token of " _" where that is one token, else of "_", else of " ", else the first that is no mark."""
    special = {*tokenizer.all_special_ids}
    for text in _PADS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] not in special:
            return int(ids[0])
    return min(set(range(len(tokenizer))) - special)


class Built(NamedTuple):
    """The patterns of some latents, and what finding them took."""

    by_latent: list[list[Pattern]]
    """None of one that is never active on the build text."""
    tokens_run: int
    """Tokens the model read for it, padding among them."""


def build_patterns(each: SubjectSae, latents: Int[Tensor, " n_chosen"], texts: N2gTexts, firings: Firings) -> Built:
    """Find the patterns of each of some latents."""
    context, numbers = texts.context, latents.numpy()
    subject, _ = context.model()
    drawn = draw(firings, numbers, texts.options.activations, seed=context.config.plan.seed)
    ids, width = texts.build.ids.numpy(), texts.build.ids.shape[1]
    rows, columns = np.divmod(drawn.positions, width)
    examples = [
        Example(int(numbers[slot]), ids[row, texts.first : column + 1], float(value))
        for row, column, slot, value in zip(rows, columns, drawn.slots, drawn.values, strict=True)
    ]
    phase = f"n2g: patterns of {each.label}"
    short = ShortTexts(subject, each.sae, bos=texts.bos, on_progress=lambda share: context.progress(phase, share))
    found = find_patterns(short, examples, texts.options, pad=texts.pad)
    by_latent: list[list[Pattern]] = [[] for _ in numbers]
    for slot, pattern in zip(drawn.slots, found, strict=True):
        by_latent[slot].append(pattern)
    return Built(by_latent, short.tokens_run)


def _measured(each: SubjectSae, texts: N2gTexts) -> Measured:
    context, options = texts.context, texts.options
    latents = texts.chosen_latents(each.sae)
    phase = f"n2g: latents of {each.label}"

    def progress(share: float) -> None:
        context.progress(phase, share)

    build = find_firings(each.sae, latents, texts.build_activations, texts.build.is_measured, progress)
    heldout = find_firings(each.sae, latents, context.heldout_activations, texts.heldout.is_measured, progress)
    built = build_patterns(each, latents, texts, build)
    tries = [Trie.of(patterns) for patterns in built.by_latent]
    is_measured: NDArray[np.bool_] = texts.heldout.is_measured.flatten().numpy()
    found = [
        agreement.agreement(heldout.of(slot), trie.predict(texts.heldout_index), is_measured)
        for slot, trie in enumerate(tries)
    ]
    chance = np.random.default_rng(context.generator(f"n2g bootstrap {each.label}").initial_seed())
    scores = agreement.scores(found, chance, draws=options.bootstrap)
    return Measured(each.job_id, scores, {FILE: _file(texts, latents.tolist(), built, tries, found)})


def _file(
    texts: N2gTexts,
    latents: Sequence[int],
    built: Built,
    tries: Sequence[Trie],
    found: Sequence[agreement.Agreement],
) -> dict[str, Any]:
    """Return what is kept of the latents: `trie.load_tries` reads it."""
    subject, _ = texts.context.model()
    about = {
        str(latent): {
            "trie": trie.as_json(),
            "patterns": [_shown(pattern, subject.tokenizer) for pattern in own],
            "above_zero": one.above_zero._asdict(),
            "above_half": one.above_half._asdict(),
        }
        for latent, trie, own, one in zip(latents, tries, built.by_latent, found, strict=True)
    }
    return {
        "format": FORMAT,
        "model": subject.fingerprint,
        "pad_token": texts.pad,
        "first": texts.first,
        "tokens_run": built.tokens_run,
        "latents": about,
    }


def _shown(pattern: Pattern, tokenizer: Any) -> str:
    """Return a pattern for a person: "start of document" as ^, any token as *."""
    words = ["*" if token is None else repr(tokenizer.decode([token])) for token in pattern.tokens]
    return " ".join(["^", *words] if pattern.at_start else words)
