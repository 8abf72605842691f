"""The metric family `layers`: what an SAE of several layers makes of each of them, all layers together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.config.evaluation.layers import LayersOptions
from orchestrator.config.job import Part
from orchestrator.errors import OrchError, SubjectError
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import Text
from worker.evaluation.layers.batches import LayerBatch, active, layer_batches, text_of
from worker.evaluation.layers.decoder import decoder_scores
from worker.evaluation.layers.distribution import distribution_scores, latent_table
from worker.evaluation.layers.examples import TopExamples
from worker.evaluation.layers.prompt import prompt_results, prompt_sums, prompt_text, read_prompt
from worker.evaluation.layers.residual import layer_vectors, vector_scores
from worker.evaluation.layers.sums import SumsOfLayers
from worker.evaluation.layers.variances import released_scores
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.n2g.divided_text import chosen_latents
from worker.evaluation.reconstruction import check_reads
from worker.subject.model import check_widths

PHASE = "layers of latents"
LATENTS, PROMPT, EXAMPLES = "latents.json", "prompt.json", "examples.json"
_ERRORS = (OrchError, RuntimeError, ValueError, ArithmeticError)


def measure(
    saes: Sequence[SubjectSae], contexts: Sequence[EvaluationContext], options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Yield what is found of each SAE, with one context for each layer, in order, of one site, model and text.

    The text is read once for all SAEs, and twice more for what does not depend on them, unless that is in the store.
    """
    asked = options if isinstance(options, LayersOptions) else LayersOptions()
    to_read: list[SubjectSae] = []
    for one in saes:
        try:
            _check(one, contexts)
            to_read.append(one)
        except OrchError as error:
            yield NotMeasured(one.job_id, error)
    if not to_read:
        return
    shared = _Shared(contexts, asked)
    shared.begin()
    readings = [_Reading(one, shared) for one in to_read]
    for batch in layer_batches(contexts, shared.text, PHASE):
        for reading in readings:
            reading.add(batch)
    for reading in readings:
        yield reading.result()


def _check(one: SubjectSae, contexts: Sequence[EvaluationContext]) -> None:
    """Refuse an SAE of another width than the activations; what else it must be is `preconditions`' to say.

    Raises:
        ConfigError: says which widths these are.
    """
    check_widths([context.model()[0] for context in contexts])
    check_reads(one.sae, contexts[0].model()[0].d_model)


@dataclass(frozen=True)
class _Shared:
    """What all SAEs are measured with."""

    contexts: Sequence[EvaluationContext]
    options: LayersOptions

    @cached_property
    def layers(self) -> list[int]:
        """Return the block of each context, counted from 0."""
        found = [context.model()[0].hook.layer for context in self.contexts]
        return [at if layer is None else layer for at, layer in enumerate(found)]

    @cached_property
    def text(self) -> Text:
        """Return the text that distributions are of."""
        return text_of(self.contexts[0].model()[1], self.options.tokens)

    @cached_property
    def prompt(self) -> tuple[LayerBatch, list[str]]:
        """Return the prompt as it is read at every layer, and its tokens."""
        text = prompt_text(self.contexts[0], self.options.prompt)
        tokenizer = self.contexts[0].model()[0].tokenizer
        return read_prompt(self.contexts, text), [tokenizer.decode([one]) for one in text.ids[0].tolist()]

    @cached_property
    def of_activations(self) -> list[Score]:
        """Return the scores of the activations, which every SAE has alike."""
        generator = self.contexts[0].generator("layers of activations")
        return [*vector_scores(layer_vectors(self.contexts, self.text), self.layers, generator)]

    def begin(self) -> None:
        """Read what is read before the text: a prompt that cannot be is told at once."""
        _ = self.prompt
        _ = self.of_activations


class _Reading:
    """One SAE while the text is read. What goes wrong with it leaves the others."""

    def __init__(self, one: SubjectSae, shared: _Shared) -> None:
        context, n_latents, options = shared.contexts[0], one.sae.facts.n_latents, shared.options
        self._one, self._shared = one, shared
        self._error: Exception | None = None
        self._sums = SumsOfLayers(shared.layers, n_latents, n_contexts=len(shared.text), device=context.device)
        n = options.example_latents if options.examples else 0
        latents = chosen_latents(one.sae, n, context, option="layers.example_latents")
        self._examples = TopExamples(
            latents, n_latents, n_layers=len(shared.layers), most=options.examples, device=context.device
        )

    def add(self, batch: LayerBatch) -> None:
        """Encode a batch, and add up what is active."""
        if self._error is not None or not len(batch.rows):
            return
        try:
            found = active(self._one.sae, batch.vectors)
            self._sums.add(batch, found)
            self._examples.add(batch, found)
        except _ERRORS as error:
            self._error = error

    def result(self) -> Measured | NotMeasured:
        """Return what was found."""
        try:
            if self._error is not None:
                raise self._error
            scores, files = self._found()
        except _ERRORS as error:
            return NotMeasured(self._one.job_id, error)
        return Measured(self._one.job_id, scores, files)

    def _found(self) -> tuple[list[Score], dict[str, Any]]:
        shared = self._shared
        context, sums = shared.contexts[0], self._sums.result()
        subject = context.model()[0]
        if not bool(sums.counts.any()):
            raise SubjectError(f"no latent of the SAE {self._one.label} is active on the text, at any of these layers")
        scores = [*distribution_scores(sums, shared.options.least_activations, context.generator("layers"))]
        scores += released_scores(sums, context.generator("layers as released"))
        of_decoder, table = decoder_scores(self._one.sae, subject)
        batch, tokens = shared.prompt
        of_prompt, prompt = prompt_results(prompt_sums(self._one.sae, batch), shared.layers, tokens)
        scores += [*of_decoder, of_prompt, *shared.of_activations]
        examples = self._examples.table(
            shared.text, shared.layers, subject.tokenizer, around=shared.options.example_tokens
        )
        return scores, {LATENTS: latent_table(sums) | {"decoder": table}, PROMPT: prompt, EXAMPLES: examples}
