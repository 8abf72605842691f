"""Score explanations of latents: how well an explainer predicts activations from its own words."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import NamedTuple

import numpy as np

from orchestrator import settings
from orchestrator.config.evaluation.explanation import ExplanationOptions
from orchestrator.config.job import Part
from orchestrator.errors import MachineError, OrchError
from worker.evaluation.context import EvaluationContext
from worker.evaluation.explanation import prompts
from worker.evaluation.explanation.answers import BadAnswer, correlation, read_activations, read_explanation
from worker.evaluation.explanation.excerpts import ExcerptText, LatentExcerpts, latent_excerpts
from worker.evaluation.explanation.explainer import Explainer, open_explainer
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.n2g.agreement import mean_score
from worker.evaluation.n2g.divided_text import DividedText, chosen_latents

FILE = "explanations.json"
_FORMAT = 1
_AT_ONCE = 4
"""Latents that are asked about at a time."""
_LOOK_SECONDS = 0.5


class Explained(NamedTuple):
    """What came of one latent."""

    latent: int
    explanation: str | None = None
    score: float | None = None
    """Correlation of simulated and true activations; None: it was not scored."""
    simulated: Sequence[Sequence[float]] = ()
    error: str | None = None
    """Why it was not: what the explainer did. None also where the latent is never active."""


def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Measure the explanation score of some latents of each SAE; nothing is asked before the explainer is allowed."""
    asked = options if isinstance(options, ExplanationOptions) else ExplanationOptions()
    with closing(open_explainer(asked, settings.load(), os.environ)) as explainer:
        texts = DividedText(context, asked.build_tokens)
        for each in saes:
            try:
                yield _measured(each, texts, asked, explainer)
            except MachineError:
                raise
            except (OrchError, RuntimeError) as error:
                yield NotMeasured(each.job_id, error)


def _measured(
    each: SubjectSae, texts: DividedText, options: ExplanationOptions, explainer: Explainer
) -> Measured | NotMeasured:
    given = _excerpts(each, texts, options)
    phase = f"explanation: latents of {each.label}"
    found = explain_all(given, explainer, lambda share: texts.context.progress(phase, share))
    failed = [one for one in found if one.error]
    if failed and not any(one.score is not None for one in found):
        raise OrchError(
            f"the explainer gave no answer of use for any of {len(failed)} latents; of latent {failed[0].latent}: "
            f"{failed[0].error}",
            hint="Ask it by hand what is asked here: docs/evaluation.md, Explanation scores, has a request.",
        )
    chance = texts.context.generator("explanation bootstrap")
    scored = [one.score for one in found if one.score is not None]
    variants = {"": scored, "all": [one.score or 0.0 for one in found]}
    scores = [
        mean_score("explanation_score", values, chance, variant) for variant, values in variants.items() if values
    ]
    silent = [one for one in found if one.score is None and one.error is None]
    shares = {"explanation_silent_share": silent, "explanation_failed_share": failed}
    scores += [Score(name, len(n) / len(found), n=len(found), details={"of": "latents"}) for name, n in shares.items()]
    about = {str(one.latent): _kept(one, excerpts) for one, excerpts in zip(found, given, strict=True)}
    return Measured(each.job_id, scores, {FILE: {"format": _FORMAT, "latents": about}})


def _excerpts(each: SubjectSae, texts: DividedText, options: ExplanationOptions) -> list[LatentExcerpts]:
    context = texts.context
    subject, _ = context.model()
    latents = chosen_latents(each.sae, options.latents, context, option="explanation.latents")
    phase = f"explanation: activations of {each.label}"
    build, heldout = texts.firings(each.sae, latents, lambda share: context.progress(phase, share))
    shown, scored = (
        ExcerptText(text, subject.tokenizer, first=texts.first, length=options.excerpt_tokens)
        for text in (texts.build, texts.heldout)
    )
    return [
        latent_excerpts(
            latent,
            (shown, active),
            (scored, active_there),
            options,
            np.random.default_rng(context.seed(f"explanation {latent}")),
        )
        for latent, active, active_there in zip(
            latents.tolist(), build.by_slot(len(latents)), heldout.by_slot(len(latents)), strict=True
        )
    ]


def explain_all(
    given: Sequence[LatentExcerpts], explainer: Explainer, on_progress: Callable[[float], None]
) -> list[Explained]:
    """Ask for an explanation of each latent, and score it; several at once, and progress is told meanwhile.

    Raises:
        ConfigError, MachineError: as `Explainer.ask`; nothing more is asked.
    """
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        asked = [pool.submit(explain_one, one, explainer) for one in given]
        left: set[Future[Explained]] = set(asked)
        while left:
            done, left = wait(left, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            on_progress(1 - len(left) / len(asked))
        return [future.result() for future in asked]
    except BaseException:
        explainer.close()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def explain_one(given: LatentExcerpts, explainer: Explainer) -> Explained:
    """Ask for an explanation of one latent, and for the activations that follow from it alone."""
    if not given.shown or not given.scored:
        return Explained(given.latent)
    explanation = None
    try:
        explanation = read_explanation(explainer.ask(prompts.explain(given.shown)))
        answer = explainer.ask(prompts.simulate(explanation, given.scored))
        simulated = read_activations(answer, given.scored)
    except BadAnswer as error:
        return Explained(given.latent, explanation, error=str(error))
    score = correlation(simulated, given.scored)
    return Explained(given.latent, explanation, score, [row.tolist() for row in simulated])


def _kept(one: Explained, given: LatentExcerpts) -> dict[str, object]:
    """Return what is kept of a latent, with the excerpts that its score is of."""
    excerpts = [
        {"tokens": list(excerpt.tokens), "activations": [round(float(value), 4) for value in excerpt.activations]}
        for excerpt in given.scored
    ]
    return {**one._asdict(), "excerpts": excerpts}
