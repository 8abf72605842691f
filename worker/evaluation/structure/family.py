"""The metric family `structure`: every question about one SAE's latents, and which of them others have too."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.evaluation.structure import StructureOptions
from orchestrator.config.job import Part
from orchestrator.errors import OrchError
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.structure import clusters, density, directions, profiles, vocabulary
from worker.evaluation.structure.activity import Activity, Tokens, independent_vectors, measure_activity, tokens_of
from worker.formats.registry import read
from worker.sae.inference import InferenceSae

FILE = "latents.json"
"""What is kept of each latent, by the statistic's name; `pairs`; `notes`: what could not be measured, and why."""
NO_UMAP = "umap-learn is not installed: pip install 'orch[structure]'"


def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Yield what is found of each SAE: `worker.evaluation.metric.MetricFamily`."""
    chosen = options if isinstance(options, StructureOptions) else StructureOptions()
    others, notes = _read_others(chosen.against, context.device)
    tokens = independent_vectors(len(context.vectors)) if context.text is None else tokens_of(context.text.heldout)
    shared = _Shared(context, chosen, tokens)
    for number, one in enumerate(saes):

        def advance(share: float, number: int = number, label: str = one.label) -> None:
            context.progress(f"structure of {label}", (number + share) / len(saes))

        theirs = {label: other for label, other in others.items() if label != one.label}
        try:
            found = _Found(shared, one.sae, notes=dict(notes))
            found.measure(theirs, advance)
        except (OrchError, RuntimeError, ValueError, ArithmeticError) as error:
            yield NotMeasured(one.job_id, error)
        else:
            yield Measured(one.job_id, found.scores, {FILE: found.latents | {"notes": found.notes}})


@dataclass(frozen=True)
class _Shared:
    """What all SAEs are measured with."""

    context: EvaluationContext
    options: StructureOptions
    tokens: Tokens


class _Found:
    """What is found of one SAE, question by question."""

    def __init__(self, shared: _Shared, sae: InferenceSae, *, notes: dict[str, str]) -> None:
        self._shared, self._sae = shared, sae
        self._generator = shared.context.generator("structure")
        self.scores: list[Score] = []
        self.latents: dict[str, Any] = {}
        self.notes = notes

    def measure(self, others: Mapping[str, InferenceSae], advance: Callable[[float], None]) -> None:
        """Ask everything; most of the time goes into the pass over the text and into comparing with others."""
        vectors, tokens = self._shared.context.vectors, self._shared.tokens
        activity = measure_activity(
            self._sae, vectors, tokens, generator=self._generator, advance=lambda share: advance(share / 2)
        )
        self.scores += density.density_scores(activity, tokens, self._generator)
        self.latents |= density.latent_statistics(activity)
        self._profiles(activity)
        advance(0.6)
        self._directions(activity, others, advance)
        self._clusters(activity)
        advance(1.0)

    def _profiles(self, activity: Activity) -> None:
        tokens = self._shared.tokens
        if tokens.ids is None:
            return
        found = profiles.all_correlations(activity, tokens)
        self.latents |= {f"{name}_correlation": density.rounded(one.r) for name, one in found.items()}
        first = self._shared.context.vectors[tokens.is_first.to(self._shared.context.device)]
        if len(first) < profiles.LEAST_FIRST:
            self.notes["first_position_latents"] = f"only {len(first)} first tokens of contexts are measured"
        enough = len(first) >= profiles.LEAST_FIRST
        latents = profiles.first_position_latents(self._sae, first, activity) if enough else None
        self.scores += profiles.profile_scores(found, latents, n_first=len(first))

    def _directions(
        self, activity: Activity, others: Mapping[str, InferenceSae], advance: Callable[[float], None]
    ) -> None:
        rows = directions.directions(self._sae)
        pairs = directions.opposing_pairs(rows)
        self.latents["opposing_pairs"] = [[*pair] for pair in pairs[: len(rows)]]
        self.scores += directions.opposing_scores(pairs, activity.density)
        for number, (label, other) in enumerate(others.items()):
            theirs = directions.directions(other).to(rows.device)
            if theirs.shape[1] != rows.shape[1]:
                self.notes[label] = f"its latents write to {theirs.shape[1]} dimensions, these to {rows.shape[1]}"
                continue
            match = directions.match(rows, theirs, most_matched=self._shared.options.matched_latents)
            if match.matched is None:
                self.notes[f"matched_cosine {label}"] = "more latents than structure.matched_latents"
            self.scores += directions.match_scores(match, label)
            self.latents[f"max_cosine {label}"] = density.rounded(match.best)
            advance(0.6 + 0.2 * (number + 1) / len(others))

    def _clusters(self, activity: Activity) -> None:
        options = self._shared.options
        rows = clusters.squared_rows(self._sae.W_enc)
        found = clusters.two_clusters(rows)
        self.scores += clusters.cluster_scores(self._sae.W_enc, found, self._generator)
        self.latents["is_in_small_cluster"] = found.is_small.int().tolist()
        order = None
        if options.umap:
            order = clusters.umap_order(rows, most=options.umap_latents, generator=self._generator)
            self.notes |= {"umap_agreement": NO_UMAP} if order is None else {}
        if order is not None:
            self.scores.append(clusters.umap_score(order, found))
            self.latents["umap"] = {"latents": order.latents.tolist(), "at": density.rounded(order.embedding)}
        if activity.squares is not None:
            m = vocabulary.effective_tokens(activity.squares)
            of_small = found.is_small[activity.sampled]
            self.scores += vocabulary.effective_token_scores(m, of_small, self._generator)
            self.latents["effective_tokens"] = {"latents": activity.sampled.tolist(), "m": density.rounded(m)}


def _read_others(against: Sequence[str], device: torch.device) -> tuple[dict[str, InferenceSae], dict[str, str]]:
    """Return the SAEs of some paths, PATH or LABEL=PATH, and why those that are not there cannot be read; by label."""
    found: dict[str, InferenceSae] = {}
    notes: dict[str, str] = {}
    for one in against:
        label, _, path = ("", "", one) if one.startswith("/") else one.partition("=")
        try:
            found[label or path] = read(Path(path), named=label or path).sae.to(device)
        except OrchError as error:
            notes[label or path] = error.message
    return found, notes
