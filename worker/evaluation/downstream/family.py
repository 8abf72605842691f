"""The metric family `downstream`: all SAEs of a place in one pass over the batches of the clean model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.job import Part
from orchestrator.errors import ConfigError, OrchError, SubjectError
from orchestrator.estimates.memory import EVALUATED_TOKENS
from orchestrator.scaling.compute_equivalent import ComputeCurve, ComputeLaw
from worker.evaluation.bootstrap import ContextBootstrap, Statistic
from worker.evaluation.clean_pass import CleanBatch, CleanPass
from worker.evaluation.context import EvaluationContext
from worker.evaluation.downstream.loss_table import (
    BASELINES,
    COLUMNS,
    OVERALL,
    PATCHED,
    LossTable,
    position_groups,
    ratio_scores,
)
from worker.evaluation.downstream.refinement import Refined, refine
from worker.evaluation.downstream.released_lens import RELEASED, as_released, degraded
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.reconstruction import check_reads
from worker.sae.inference import InferenceSae

_REFINED = "refined"
Patch = Callable[[CleanBatch, Tensor], Tensor]
"""Takes a batch and x̂; returns what is put in place of the activations."""


@dataclass
class _Tally:
    """What is measured of one SAE, and what was found so far."""

    entry: SubjectSae
    shortened: dict[str, InferenceSae]
    """The SAE with other k at test time, by variant."""
    refused: dict[str, str]
    """Why a variant is not measured."""
    tables: dict[str, LossTable]
    """By variant of the patch; the plain one is named by the empty text."""
    squares: dict[str, Tensor]
    """‖x − x̂‖² by variant, (n_contexts, context)."""
    refinement: dict[str, Tensor]
    """Fields of `Refined` by name, (n_contexts, context)."""

    @classmethod
    def of(cls, entry: SubjectSae, clean: CleanPass, asked: DownstreamOptions, context: EvaluationContext) -> "_Tally":
        shortened, refused = {}, {}
        for k in asked.test_k:
            try:
                shortened[f"k={k}"] = with_k(entry.sae, k)
            except ConfigError as error:
                refused[f"k={k}"] = error.message
        reconstructed = ["", *shortened, *([_REFINED] if asked.refined else [])]
        shape = clean.context.heldout_activations.shape[:2]
        released = RELEASED if asked.released_lens and context.lens is not None else ()
        tables = {variant: LossTable(clean) for variant in [*reconstructed, *patches(clean, asked), *released]}
        squares = {variant: torch.zeros(shape) for variant in reconstructed}
        refinement = {name: torch.zeros(shape) for name in Refined._fields[1:]} if asked.refined else {}
        return cls(entry, shortened, refused, tables, squares, refinement)


class _Positions(NamedTuple):
    """Of each position, whatever the SAE; 0 where it does not count. (n_contexts, context)."""

    norm: Tensor
    """‖x‖ of the raw activations."""
    spread: Tensor
    """‖x − μ‖² of what the SAEs read."""
    one: Tensor
    """1."""


def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Yield ΔCE, KL and what follows from them of each SAE, with 90% intervals over contexts.

    x̂ is put in place of the raw activations at every position that counts, of an SAE in the space of a lens after it
    has been mapped back; the errors ‖x − x̂‖² of such an SAE are those before, in lens space. Cross-entropy and
    KL(clean ‖ patched) in nats per token, of every position that counts and has a next token.
    Source: numerics 8; Gao et al. 2024, section 4.1.
    """
    asked = options if isinstance(options, DownstreamOptions) else DownstreamOptions()
    clean = CleanPass(context.raw)
    tallies: list[_Tally] = []
    for entry in saes:
        try:
            check_reads(entry.sae, clean.mean.shape[0])
            tallies.append(_Tally.of(entry, clean, asked, context))
        except ConfigError as error:
            yield NotMeasured(entry.job_id, error)
    if not tallies:
        return
    positions = _positions(clean, context)
    for number, batch in enumerate(clean.batches("downstream")):
        for index, tally in enumerate([*tallies]):
            context.progress("downstream", (number + index / len(tallies)) / clean.n_batches)
            try:
                _add(tally, clean, batch, asked, context)
            except (OrchError, RuntimeError) as error:
                tallies.remove(tally)
                yield NotMeasured(tally.entry.job_id, error)
    bootstrap = ContextBootstrap(len(clean.is_counted), context.generator("bootstrap"))
    conditions = [] if context.lens_condition is None else [Score("lens_condition", context.lens_condition)]
    for tally in tallies:
        scores = [*_scores(tally, bootstrap, asked), *_by_position(tally, positions, bootstrap), *conditions]
        yield Measured(tally.entry.job_id, scores)


def patches(clean: CleanPass, asked: DownstreamOptions) -> dict[str, Patch]:
    """Return what else is put in place of the activations, made of x̂, by variant."""

    def first(batch: CleanBatch, found: Tensor) -> Tensor:
        return torch.cat([found[:, :1], batch.activations[:, 1:]], dim=1)

    def rest(batch: CleanBatch, found: Tensor) -> Tensor:
        return torch.cat([batch.activations[:, :1], found[:, 1:]], dim=1)

    def random_error(batch: CleanBatch, found: Tensor) -> Tensor:
        generator = clean.context.generator(f"random error {batch.rows.start}")
        direction = torch.randn(found.shape, generator=generator).to(found.device)
        scale = _norms(found - batch.activations) / _norms(direction)
        return batch.activations + direction * scale.unsqueeze(-1)

    apart = {"first replaced": first, "rest replaced": rest} if asked.replaced_apart else {}
    return apart | ({"random error": random_error} if asked.random_error else {})


def _add(
    tally: _Tally, clean: CleanPass, batch: CleanBatch, asked: DownstreamOptions, context: EvaluationContext
) -> None:
    x = context.into(batch.activations)
    found = {"": reconstruct(tally.entry.sae, x)}
    found |= {variant: reconstruct(sae, x) for variant, sae in tally.shortened.items()}
    if asked.refined:
        found[_REFINED], *sums = refine(tally.entry.sae, x)
        for name, part in zip(Refined._fields[1:], sums, strict=True):
            tally.refinement[name][batch.rows] = (part * batch.is_measured).cpu()
    for variant, value in found.items():
        tally.squares[variant][batch.rows] = (_norms(x - value).square() * batch.is_measured).cpu()
    replaced = {variant: context.back(value) for variant, value in found.items()}
    replaced |= {variant: patch(batch, replaced[""]) for variant, patch in patches(clean, asked).items()}
    for variant, value in replaced.items():
        tally.tables[variant].add(batch, clean.losses(batch, value))
    if asked.released_lens and context.lens is not None:
        for variant, run in as_released(context, batch.activations, replaced[""], tally.entry.sae).items():
            baseline = degraded(clean, batch, run.baseline)
            tally.tables[variant].add(baseline, clean.losses(baseline, run.patched))


def _scores(tally: _Tally, bootstrap: ContextBootstrap, asked: DownstreamOptions) -> Iterator[Score]:
    plain = tally.tables[""]
    for score in plain.scores({**OVERALL, **BASELINES}, bootstrap):
        is_told = score.metric == "delta_ce" and tally.refused
        yield score._replace(details={"not_measured": tally.refused}) if is_told else score
    yield from _compute_equivalents(plain, bootstrap, asked)
    groups = position_groups(plain.clean.is_counted.shape[1])
    yield from plain.scores(PATCHED, bootstrap, groups={name: is_in for name, is_in in groups.items() if name})
    for variant, table in tally.tables.items():
        if variant:
            halves = {name: groups[name] for name in ("", "first", "rest")} if "replaced" in variant else None
            yield from table.scores(PATCHED, bootstrap, variant=variant, groups=halves)
    yield Score("identity", plain.clean.identity_error, details={"unit": "nats", "of": "tokens of the first contexts"})


def _compute_equivalents(plain: LossTable, bootstrap: ContextBootstrap, asked: DownstreamOptions) -> Iterator[Score]:
    if asked.compute_curve:
        curve = ComputeCurve.of(*np.array(asked.compute_curve).T)
        statistics: dict[tuple[str, str], Statistic] = {
            ("compute_equivalent", "checkpoints"): partial(_share, curve),
            ("ce_patched", ""): OVERALL["ce_patched", ""],
            ("ce_clean", ""): BASELINES["ce_clean", ""],
        }
        share, *losses = plain.scores(statistics, bootstrap)
        within = curve.reaches(np.array([loss.value for loss in losses]))
        yield share._replace(details={"is_within_curve": bool(within.all())})
    law = asked.compute_law
    if law is not None:
        given = ComputeLaw(law.e or 0.0, np.nan, law.alpha or np.nan)
        family = ComputeLaw.fit(*np.array(law.table).T) if law.table else given
        (score,) = plain.scores({("compute_equivalent", "family"): partial(_share, family)}, bootstrap)
        yield score._replace(details={"e": family.e, "alpha": family.alpha})


def _share(way: ComputeCurve | ComputeLaw, sums: Tensor) -> Tensor:
    n, ce, clean = (sums[..., COLUMNS.index(name)].numpy() for name in ("n", "ce", "ce_clean"))
    return torch.from_numpy(np.asarray(way.share(ce / n, clean=clean / n)))


def _positions(clean: CleanPass, context: EvaluationContext) -> _Positions:
    is_measured = context.model()[1].heldout.is_measured
    mean = context.vectors.mean(0, dtype=torch.float64).float().cpu()
    norms = [_norms(part) for part in torch.split(clean.context.heldout_activations, clean.size)]
    spreads = [_norms(part - mean).square() for part in torch.split(context.heldout_activations, clean.size)]
    return _Positions(torch.cat(norms) * is_measured, torch.cat(spreads) * is_measured, is_measured.float())


def _by_position(tally: _Tally, positions: _Positions, bootstrap: ContextBootstrap) -> Iterator[Score]:
    counts = positions.one
    apart = {name: is_in for name, is_in in position_groups(counts.shape[1]).items() if name}
    for variant, squares in tally.squares.items():
        groups = None if variant else apart  # of all positions it is the family reconstruction's
        yield from ratio_scores(
            "fvu", (squares, positions.spread, counts), bootstrap, variant=variant or "raw", groups=groups
        )
    yield from ratio_scores(
        "residual_norm", (positions.norm, counts, counts), bootstrap, groups=position_groups(counts.shape[1])
    )
    if tally.refinement:
        change, n_increased, n_active = (tally.refinement[name] for name in Refined._fields[1:])
        yield from ratio_scores("refinement", (change, n_active, n_active), bootstrap, variant="mean change")
        yield from ratio_scores("refinement", (n_increased, n_active, n_active), bootstrap, variant="share increased")


def _norms(x: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=-1)
    return norms


def with_k(sae: InferenceSae, k: int) -> InferenceSae:
    """Return an SAE that keeps the k largest pre-activations of each vector, whatever it was trained with.

    Raises:
        ConfigError: k does not fit, or the SAE chooses its latents otherwise.
    Source: Gao et al. 2024, section 5.3 (progressive codes, TopK at test time on ReLU latents).
    """
    if sae.facts.selection not in {"topk", "batchtopk", "relu"}:
        raise ConfigError(f"the latents of a {sae.facts.selection} SAE are not those of largest pre-activation")
    return sae.changed({}, facts=replace(sae.facts, selection="topk", k=k))


def reconstruct(sae: InferenceSae, x: Tensor) -> Tensor:
    """Return x̂ of activations (batch, context, d_model), in float32.

    Raises:
        SubjectError: it has values that are not finite.
    """
    size = max(1, EVALUATED_TOKENS // x.shape[1])
    found = torch.cat([sae(part).float() for part in torch.split(x, size)])
    if not bool(found.isfinite().all()):
        raise SubjectError("its reconstructions have values that are not finite")
    return found
