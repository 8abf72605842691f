"""The metric family `ablation`: latents of each SAE, and residual channels and random directions at the same places."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from orchestrator.config.evaluation.ablation import AblationOptions, AblationVariant
from orchestrator.config.job import Part
from orchestrator.errors import ConfigError, OrchError
from worker.evaluation.ablation.effects import Ablations, Effects
from worker.evaluation.ablation.positions import PER_WINDOW, WIDTH, Window, draw_windows
from worker.evaluation.bootstrap import ContextBootstrap, ratio
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.sae.inference import InferenceSae, raw_scale

BASELINES = ("channels", "random directions")
FILE = "pairs.json"
"""By variant, what was measured of each pair."""
_PER_POSITION = 4
"""Latents, channels or directions that are ablated at each position, each alone."""
_ENCODED_VALUES = 1 << 22
"""Activations of latents that are held at once."""


class Chosen(NamedTuple):
    """What is ablated in one window: latents, channels or directions, and how much each pair counts."""

    ablations: Ablations
    numbers: Int[Tensor, " n_rows"]
    weights: Float[Tensor, " n_rows"]
    """1 where all pairs of a position are taken; with fewer, what one of them stands for."""


Choose = Callable[[Window, Tensor, torch.Generator], Chosen]
"""Takes a window and its activations (length, d_model)."""


class Pairs(NamedTuple):
    """What was measured, pair by pair."""

    context: Int[Tensor, " n_pairs"]
    """Row of the held-out text."""
    position: Int[Tensor, " n_pairs"]
    number: Int[Tensor, " n_pairs"]
    """Of the latent or channel."""
    weight: Float[Tensor, " n_pairs"]
    share: Float[Tensor, " n_pairs"]
    """(L1/L2)² / (V·T)."""

    def sums(self, n_contexts: int) -> Float[Tensor, "n_contexts 2"]:
        """Return Σ weight · share and Σ weight of each context."""
        columns = torch.stack([self.weight * self.share, self.weight], dim=1)
        return columns.new_zeros(n_contexts, 2).index_add_(0, self.context, columns)


def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Yield what is found of each SAE: `worker.evaluation.metric.MetricFamily`."""
    asked = options if isinstance(options, AblationOptions) else AblationOptions()
    run = AblationRun(context, asked)
    baselines = {variant: run.baselines(variant) for variant in asked.variants}
    for number, one in enumerate(saes):
        within = (number / len(saes), 1 / len(saes))
        try:
            if one.sae.facts.is_transcoder:
                raise ConfigError("a transcoder's latents write to another place than the one it reads")
            found = {
                variant: run.measure(
                    partial(choose_latents, one.sae, variant, context=context), f"ablation of {one.label}", within
                )
                for variant in asked.variants
            }
        except (OrchError, RuntimeError, ValueError) as error:
            yield NotMeasured(one.job_id, error)
        else:
            scores = [score for variant in found for score in run.scores(variant, found[variant], baselines[variant])]
            yield Measured(one.job_id, scores, {FILE: {variant: _columns(pairs) for variant, pairs in found.items()}})


class AblationRun:
    """One place of one model: which positions are measured, and what is measured at them."""

    def __init__(self, context: EvaluationContext, asked: AblationOptions) -> None:
        """Draw the positions: by the seed and the text alone, so that they are those of every SAE, and every place."""
        _, text = context.model()
        n_windows = -(-asked.pairs // (PER_WINDOW * _PER_POSITION))
        generator = context.generator("ablation positions")
        self.windows = draw_windows(text.heldout.is_measured, n_windows, asked.affected_tokens, generator)
        self._context, self._asked = context, asked
        self._effects = Effects(context.raw, context.raw.restart, asked.affected_tokens)
        self._n_contexts = len(text.heldout)
        self._bootstrap = ContextBootstrap(self._n_contexts, context.generator("ablation intervals"))

    def measure(self, choose: Choose, phase: str, within: tuple[float, float] = (0.0, 1.0)) -> Pairs:
        """Measure what is chosen at each window; `within` is the part of the whole that this is: start and length."""
        found: list[tuple[Tensor, ...]] = []
        for number, window in enumerate(self.windows):
            self._context.progress(phase, within[0] + within[1] * number / len(self.windows))
            generator = self._context.generator(f"ablation {number}")
            ablations, numbers, weights = choose(window, self._effects.activations(window), generator)
            if not len(numbers):
                continue
            shares = self._effects.shares(window, ablations)
            changes = shares.isfinite()
            rows = torch.full_like(ablations.at, window.context)
            found.append(tuple(t[changes] for t in (rows, ablations.at, numbers, weights.double(), shares)))
        if not found:
            raise ConfigError("no latent is active at the positions that were drawn: there is nothing to ablate")
        return Pairs(*(torch.cat(column) for column in zip(*found, strict=True)))

    def baselines(self, variant: AblationVariant) -> Mapping[str, Pairs]:
        """Return what channels and random directions come to, from the store where they have been measured before.

        They leave no error, so that `no error` is held against them at one position.
        """
        everywhere = variant == "from start"
        sizes = {"pairs": self._asked.pairs, "affected": self._asked.affected_tokens, "everywhere": everywhere}
        sizes |= {"width": WIDTH, "per_window": PER_WINDOW, "per_position": _PER_POSITION}

        def compute(kind: str) -> dict[str, Tensor]:
            choose = partial(choose_directions, kind == "channels", everywhere)
            return self.measure(choose, f"ablation of {kind}")._asdict()

        found = {}
        for kind in BASELINES:
            of = self._context.raw.of(
                "ablation baseline", version=2, kind=kind, seed=self._context.config.plan.seed, **sizes
            )
            kept = self._context.store.get(of, partial(compute, kind))
            found[kind] = Pairs(**{name: kept[name] for name in Pairs._fields})
        return found

    def scores(self, variant: AblationVariant, found: Pairs, baselines: Mapping[str, Pairs]) -> Iterator[Score]:
        """Yield mean shares, of latents and of what they are compared with, and their ratios: paired by context."""
        name = "" if variant == "one position" else variant
        latents = found.sums(self._n_contexts)
        n_windows = {"windows": len(self.windows), "affected_tokens": self._asked.affected_tokens}
        estimate = self._bootstrap(latents).estimate(ratio)
        yield estimate.score("ablation_sparsity", name, n=len(found.share), **n_windows)
        for kind, pairs in baselines.items():
            theirs, named = pairs.sums(self._n_contexts), f"{kind} {name}".strip()
            if variant != "no error":
                yield self._bootstrap(theirs).estimate(ratio).score("ablation_sparsity", named, n=len(pairs.share))
            both = torch.cat([latents, theirs], dim=1)
            yield self._bootstrap(both).estimate(_ratio_of_means).score("ablation_ratio", named, n=len(found.share))


def choose_latents(
    sae: InferenceSae, variant: AblationVariant, window: Window, x: Float[Tensor, "length d_model"],
    generator: torch.Generator, *, context: EvaluationContext,
) -> Chosen:  # fmt: skip
    """Draw active latents at each position, and take a · W_dec row, mapped to raw space, out of the raw activations."""
    at, read = window.at.to(x.device), context.into(x)
    acts = sae.encode(read[at]).float()
    number, latents = acts.nonzero(as_tuple=True)
    n_active = number.bincount(minlength=len(at))
    # In a random order within each position; of that order the first few.
    order = (number + torch.rand(len(number), generator=generator, dtype=torch.float64).to(x.device)).argsort()
    rank = torch.arange(len(number), device=x.device) - (n_active.cumsum(0) - n_active)[number]
    kept = order[rank < _PER_POSITION]
    number, latents = number[kept], latents[kept]
    weights = (n_active / n_active.clamp_max(_PER_POSITION))[number]
    clean, clean_of = x[None], torch.zeros_like(number)
    if variant == "no error":
        clean, clean_of = x.repeat(len(at), 1, 1), number
        clean[torch.arange(len(at)), at] = context.back(sae(read[at]).float())
    rows, scale = context.back_direction(sae.W_dec[latents].float()), raw_scale(sae, read).float()
    if variant == "from start":
        size = max(1, _ENCODED_VALUES // acts.shape[1])
        values = torch.cat([sae.encode(part)[:, latents] for part in torch.split(read, size)]).float()
        ablated = x - (values * scale).T[:, :, None] * rows[:, None]
    else:
        ablated = clean[clean_of]
        ablated[torch.arange(len(number)), at[number]] -= acts[number, latents, None] * scale[at[number]] * rows
    return Chosen(Ablations(clean, ablated, clean_of.cpu(), at[number].cpu()), latents.cpu(), weights.cpu())


def choose_directions(
    channels: bool, everywhere: bool, window: Window, x: Float[Tensor, "length d_model"], generator: torch.Generator
) -> Chosen:
    """Draw channels, or random directions, at each position, and take the projection on them out."""
    number = torch.arange(len(window.at)).repeat_interleave(_PER_POSITION)
    d_model = x.shape[1]
    numbers = torch.randint(d_model, (len(number),), generator=generator)
    if channels:
        directions = functional.one_hot(numbers, d_model).float()
    else:
        numbers = torch.arange(len(number))
        directions = functional.normalize(torch.randn(len(number), d_model, generator=generator), dim=1)
    directions, at = directions.to(x.device), window.at[number]
    projections = directions @ x.T
    if everywhere:
        ablated = x - projections[:, :, None] * directions[:, None]
    else:
        ablated, each = x.repeat(len(at), 1, 1), torch.arange(len(at))
        ablated[each, at] -= projections[each, at, None] * directions
    return Chosen(Ablations(x[None], ablated, torch.zeros_like(at), at), numbers, torch.ones(len(at)))


def _ratio_of_means(sums: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    return ratio(sums[..., :2]) / ratio(sums[..., 2:])


def _columns(pairs: Pairs) -> dict[str, list[Any]]:
    return {name: [round(value, 6) for value in column.tolist()] for name, column in pairs._asdict().items()}
