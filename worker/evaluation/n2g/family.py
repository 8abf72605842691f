"""Measure how far short patterns of tokens predict when latents are active (N2G)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.evaluation.n2g import N2gOptions
from orchestrator.config.job import Part
from orchestrator.errors import MachineError, OrchError
from worker.evaluation.clean_pass import CleanPass
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured, SubjectSae
from worker.evaluation.n2g import agreement
from worker.evaluation.n2g.built_patterns import Built, build_patterns
from worker.evaluation.n2g.divided_text import DividedText, chosen_latents
from worker.evaluation.n2g.simulated import simulated_scores
from worker.evaluation.n2g.trie import FORMAT, IndexedText, Pattern, Trie

FILE = "n2g.json"


def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Measure precision, recall and F1 of the patterns of some latents of each SAE."""
    asked = options if isinstance(options, N2gOptions) else N2gOptions()
    texts = DividedText(context, asked.build_tokens)
    for each in saes:
        try:
            yield _measured(each, texts, asked)
        except MachineError:
            raise
        except (OrchError, RuntimeError) as error:
            yield NotMeasured(each.job_id, error)


def _measured(each: SubjectSae, texts: DividedText, options: N2gOptions) -> Measured:
    context = texts.context
    latents = chosen_latents(each.sae, options.latents, context, option="n2g.latents")
    phase = f"n2g: latents of {each.label}"

    def progress(share: float) -> None:
        context.progress(phase, share)

    build, heldout = texts.firings(each.sae, latents, progress)
    built = build_patterns(each, latents, texts, build, options=options)
    tries = [Trie.of(patterns) for patterns in built.by_latent]
    index = IndexedText(texts.heldout.ids.numpy(), texts.first)
    is_measured: NDArray[np.bool_] = texts.heldout.is_measured.flatten().numpy()
    found = [
        agreement.agreement(true, trie.predict(index), is_measured)
        for true, trie in zip(heldout.by_slot(len(latents)), tries, strict=True)
    ]
    scores = agreement.scores(found, context.generator("n2g bootstrap"))
    if options.reconstruct and not each.sae.facts.is_transcoder:
        scores += simulated_scores(each, texts, options, CleanPass(context))
    return Measured(each.job_id, scores, {FILE: _file(texts, latents.tolist(), built, tries, found)})


def _file(
    texts: DividedText,
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
        "pad_token": built.pad,
        "first": texts.first,
        "tokens_run": built.tokens_run,
        "latents": about,
    }


def _shown(pattern: Pattern, tokenizer: Any) -> str:
    """Return a pattern for a person: "start of document" as ^, any token as *."""
    words = ["*" if token is None else repr(tokenizer.decode([token])) for token in pattern.tokens]
    return " ".join(["^", *words] if pattern.at_start else words)
