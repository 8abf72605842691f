"""Explanation reconstruction: the model run with what is decoded of predicted activations in place of true ones.

Source: paper section 4.4.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.evaluation.n2g import N2gOptions
from worker.evaluation.bootstrap import ContextBootstrap, ratio
from worker.evaluation.clean_pass import CleanBatch, CleanPass
from worker.evaluation.downstream.loss_table import PATCHED, measure_patch
from worker.evaluation.metric import Score, SubjectSae
from worker.evaluation.n2g.built_patterns import build_patterns
from worker.evaluation.n2g.divided_text import DividedText
from worker.evaluation.n2g.latent_acts import Firings, find_firings
from worker.evaluation.n2g.trie import IndexedText, Predicted, Trie
from worker.sae.inference import InferenceSae, normalized, raw_scale

_BIGRAM_TOKENS = 1 << 24
_DISCOUNT = 0.75
_PENDING_VALUES = 1 << 22
"""Predicted activations that are held until they are decoded together: 12 bytes each, 32 while they are."""


@torch.no_grad()
def simulated_scores(each: SubjectSae, texts: DividedText, options: N2gOptions, clean: CleanPass) -> Iterator[Score]:
    """Yield ΔCE and KL with every latent simulated by its patterns, and ΔCE of a bigram model of the text.

    Each latent's prediction s is multiplied by E[s·a] / E[s²], a its true activation, both on the text its patterns are
    built of. Where vectors are normalised one by one, the statistics that are put back are the true ones.
    """
    sums = _simulated(each, texts, options).view(*texts.heldout.ids.shape, -1)

    def reconstructed(batch: CleanBatch) -> Float[Tensor, "batch context d_model"]:
        return decode_sums(each.sae, sums[batch.rows], batch.activations)

    table = measure_patch(clean, reconstructed, phase=f"n2g: the model, simulated latents of {each.label}")
    bootstrap = ContextBootstrap(len(clean.is_counted), texts.context.generator("bootstrap"))
    yield from table.scores(PATCHED, bootstrap, variant="n2g")
    losses = bigram_losses(texts)
    is_counted = clean.is_counted
    sums = torch.stack([((losses - table.values["ce_clean"]) * is_counted).sum(1), is_counted.sum(1)], dim=1)
    yield bootstrap(sums).estimate(ratio).score("delta_ce", "bigram", n=int(is_counted.sum()))


def _simulated(each: SubjectSae, texts: DividedText, options: N2gOptions) -> Float[Tensor, "n_tokens d_out"]:
    """Return Σ rescaled prediction · W_dec row over all latents, of each held-out token; on the CPU.

    What many latents predict, which may be millions of values, is never held at once.
    """
    context, n_latents = texts.context, each.sae.facts.n_latents
    phase = f"n2g: all latents of {each.label}"
    latents = torch.arange(n_latents)
    measured = texts.build.is_measured
    true = find_firings(
        each.sae, latents, texts.build_activations, measured, lambda share: context.progress(phase, share)
    )
    built = build_patterns(each, latents, texts, true, options=options)
    build = IndexedText(texts.build.ids.numpy(), texts.first)
    heldout = IndexedText(texts.heldout.ids.numpy(), texts.first)
    counts = measured.flatten().numpy()
    sums = torch.zeros(texts.heldout.ids.numel(), each.sae.W_dec.shape[1])
    pending, n_pending = list[Firings](), 0
    for latent, own in enumerate(true.by_slot(n_latents)):
        context.progress(phase, latent / n_latents)
        trie = Trie.of(built.by_latent[latent])
        factor = scale(trie.predict(build), own, counts)
        found = trie.predict(heldout)
        slots = np.full(len(found.positions), latent, dtype=np.int32)
        pending.append(Firings(found.positions.astype(np.int32), slots, (factor * found.values).astype(np.float32)))
        n_pending += len(slots)
        if n_pending >= _PENDING_VALUES or latent == n_latents - 1:
            add_decoded(sums, each.sae, Firings(*(np.concatenate(part) for part in zip(*pending, strict=True))))
            pending, n_pending = [], 0
    return sums


def scale(predicted: Predicted, true: Firings, is_measured: NDArray[np.bool_]) -> float:
    """Return E[s·a] / E[s²] over the measured positions: the best factor of s; 0 where nothing is predicted."""
    counts = is_measured[predicted.positions]
    positions, s = predicted.positions[counts], predicted.values[counts]
    _, at_predicted, at_true = np.intersect1d(positions, true.positions, assume_unique=True, return_indices=True)
    square = float(s @ s)
    return float(s[at_predicted] @ true.values[at_true].astype(np.float64)) / square if square else 0.0


def add_decoded(sums: Float[Tensor, "n_tokens d_out"], sae: InferenceSae, acts: Firings) -> None:
    """Add Σ activation · W_dec row to what the token of each activation has, in place."""
    places = torch.from_numpy(np.stack([acts.positions, acts.slots]).astype(np.int64))
    z = torch.sparse_coo_tensor(places, torch.from_numpy(acts.values), (len(sums), len(sae.W_dec)))
    sums += torch.sparse.mm(z.to(sae.device), sae.W_dec.detach().float()).to(sums.device)


def decode_sums(
    sae: InferenceSae, sums: Float[Tensor, "batch context d_out"], x: Float[Tensor, "batch context d_model"]
) -> Float[Tensor, "batch context d_out"]:
    """Return x̂ of sums of activations · W_dec rows; x only tells the statistics of its vectors."""
    vectors = x.to(sae.device)
    scale = raw_scale(sae, vectors).float()
    mean = normalized(sae, vectors).mean.float()
    return ((sums.to(sae.device) + sae.b_dec.float()) * scale + mean).to(x.device)


def bigram_losses(texts: DividedText) -> Float[Tensor, "n_contexts predicted"]:
    """Return the cross-entropy of each held-out token given the one before it, nats, by counts in the text before.

    p(b | a) = max(c(ab) − D, 0) / c(a) + D · t(a) / c(a) · p(b), t(a) the number of distinct tokens after a, D = 0.75;
    p(b) = (c(b) + 1) / (n + V). Absolute discounting, of up to 16 million tokens.
    """
    subject, text = texts.context.model()
    ids = text.before(max(1, _BIGRAM_TOKENS // text.tokens.context_length)).ids
    return BigramCounts(ids, subject.vocabulary).losses(texts.heldout.ids)


class BigramCounts:
    """Counts of tokens and of pairs."""

    def __init__(self, ids: Int[Tensor, "n_contexts context"], vocabulary: int) -> None:
        """Count."""
        self.vocabulary = vocabulary
        first, second = ids[:, :-1].flatten(), ids[:, 1:].flatten()
        self.pairs, self.pair_counts = torch.unique(first * vocabulary + second, return_counts=True)
        self.as_first = torch.bincount(first, minlength=vocabulary).double()
        self.single = (torch.bincount(ids.flatten(), minlength=vocabulary).double() + 1) / (ids.numel() + vocabulary)
        self.distinct = torch.bincount(self.pairs // vocabulary, minlength=vocabulary).double()

    def losses(self, ids: Int[Tensor, "n_contexts context"]) -> Float[Tensor, "n_contexts predicted"]:
        """Return −ln p of every token but each context's first, given the one before it."""
        first, second = ids[:, :-1], ids[:, 1:]
        wanted = first * self.vocabulary + second
        at = torch.searchsorted(self.pairs, wanted).clamp_max(len(self.pairs) - 1)
        together = torch.where(self.pairs[at] == wanted, self.pair_counts[at], 0).double()
        n = self.as_first[first]
        seen = (together - _DISCOUNT).clamp_min(0) / n + _DISCOUNT * self.distinct[first] / n * self.single[second]
        return -torch.where(n > 0, seen, self.single[second]).log().float()
