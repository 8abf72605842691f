"""Measure at one place, or at several layers of a site: what metric families know of is one place at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from orchestrator.config.evaluation.families import Family
from orchestrator.config.evaluation.layer_variants import of_layers
from orchestrator.config.job import SubjectConfig
from orchestrator.errors import OrchError
from worker.evaluation import registry
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, MetricFamily, NotMeasured, SubjectSae
from worker.evaluation.over_layers import over_layers


@dataclass(frozen=True)
class Places:
    """Where some SAEs are measured: all of them at each place, in the order of the layers."""

    whole: EvaluationContext
    """Everything but the place: that of its config is all of them."""
    configs: tuple[SubjectConfig, ...]
    """Of each place."""

    @classmethod
    def of(cls, whole: EvaluationContext) -> "Places":
        """Find the places that a context's config names, in its model.

        Raises:
            ConfigError: the model has not all of the layers.
        """
        config, subject = whole.config.subject, whole.subject
        configs = config.places(subject.n_layers) if subject is not None else (config,)
        places = cls(whole, configs)
        for one in configs[1:]:  # that a layer is missing is said before the others have been measured
            places.at(one)
        return places

    def at(self, config: SubjectConfig) -> EvaluationContext:
        """Return the context of one place."""
        subject = self.whole.subject.at(config) if self.whole.subject is not None else None
        return replace(self.whole, subject=subject, config=self.whole.config.model_copy(update={"subject": config}))

    def contexts(self) -> Iterator[EvaluationContext]:
        """Yield the context of each place; what one holds of its activations can go before the next one is made."""
        yield from map(self.at, self.configs)

    def measure(self, family: Family, saes: Sequence[SubjectSae], options: Any) -> Iterator[Measured | NotMeasured]:
        """Yield what a metric family finds of each SAE: `worker.evaluation.metric.MetricFamily`.

        At several layers, or at one where not all of them were trained, of each layer: `over_layers`.
        """
        of_all_layers = registry.layers_family(family)
        if of_all_layers is not None:
            own = {one.job_id: one.sae.facts.layers for one in saes}
            for found in of_all_layers(saes, [*self.contexts()], options):
                yield found if isinstance(found, NotMeasured) else self._named(found, own[found.job_id])
        elif len(self.configs) == 1 and all(map(self._is_home, saes)):
            yield from registry.family(family)(saes, self._first, options)
        else:
            yield from self._at_each(registry.family(family), saes, options)

    def _named(self, found: Measured, own: tuple[int, ...]) -> Measured:
        """Return what was found of these layers together: plain where they are those the SAE was trained on."""
        layers = tuple(config.layer for config in self.configs if config.layer is not None)
        if own in ((), layers):
            return found
        return replace(found, scores=[one._replace(variant=of_layers(layers, one.variant)) for one in found.scores])

    @cached_property
    def _first(self) -> EvaluationContext:
        return self.at(self.configs[0])

    def _is_home(self, one: SubjectSae) -> bool:
        """Say whether the only place is that which an SAE was trained on, as far as both are known."""
        layer, trained_on = self.configs[0].layer, one.sae.facts.layers
        return layer is None or trained_on in ((), (layer,))

    def _at_each(
        self, measure: MetricFamily, saes: Sequence[SubjectSae], options: Any
    ) -> Iterator[Measured | NotMeasured]:
        found: dict[int, dict[int, Measured]] = {sae.job_id: {} for sae in saes}
        trained_on = {sae.job_id: sae.sae.facts.layers for sae in saes}
        for number, context in enumerate(self.contexts()):
            layer = context.config.subject.layer
            assert layer is not None, "places that are told apart are layers"
            waiting = [sae for sae in saes if sae.job_id in found]
            for one in measure(waiting, self._telling(context, number), options) if waiting else ():
                if isinstance(one, NotMeasured):
                    del found[one.job_id]
                    yield NotMeasured(one.job_id, _at_layer(layer, one.error))
                    continue
                found[one.job_id][layer] = one
                if number == len(self.configs) - 1:
                    yield over_layers(found.pop(one.job_id), trained_on[one.job_id])

    def _telling(self, context: EvaluationContext, number: int) -> EvaluationContext:
        """Return a context that tells how far all places are."""

        def progress(phase: str, share: float) -> None:
            layer = context.config.subject.layer
            self.whole.progress(f"{phase}, layer {layer}", (number + share) / len(self.configs))

        return replace(context, progress=progress)


def _at_layer(layer: int, error: Exception) -> Exception:
    if isinstance(error, OrchError):
        error.message = f"at layer {layer}: {error.message}"
    return error
