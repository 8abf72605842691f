"""Scores of one SAE at several layers: of each layer, their mean, and how much they vary from layer to layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.evaluation.layer_variants import MEAN, VARIATION, at_layer, over_all
from worker.evaluation.bootstrap import Estimate
from worker.evaluation.metric import Measured, Score

_OVER_ALL = ("", "raw")
"""Of which variants these are given."""
_Statistic = Callable[[Tensor], Tensor]


def over_layers(found: Mapping[int, Measured], own: Sequence[int]) -> Measured:
    """Return what a metric family found of an SAE at each layer as one measurement.

    A score of layer 3 has the variant `layer=3`, before its own: `layer=3, first`. Without it stands the mean over the
    layers that the SAE was trained on, `own` (none: all), where all of these were measured and have the score. At one
    layer alone there is nothing over layers: its scores are plain where the SAE was trained on it, else of the layer.

    Where all layers drew the same contexts, the interval of a mean is that of the means of the draws; else its ends are
    the means of the layers' ends, as if all of them moved together, which is no narrower than the true one.
    """
    if len(found) == 1 and list(own or found) == [*found]:
        return next(iter(found.values()))
    files = {f"layer_{layer}_{name}": content for layer, one in found.items() for name, content in one.files.items()}
    job_id = next(iter(found.values())).job_id
    return Measured(job_id, [*_of_own(found, own), *_of_all(found), *_of_each(found)], files)


def _of_own(found: Mapping[int, Measured], own: Sequence[int]) -> Iterator[Score]:
    layers = own or [*found]
    if all(layer in found for layer in layers):
        for scores in _in_common([found[layer] for layer in layers]):
            yield scores[0] if len(scores) == 1 else _mean(scores, layers)


def _of_all(found: Mapping[int, Measured]) -> Iterator[Score]:
    for scores in _in_common([*found.values()]) if len(found) > 1 else ():
        if scores[0].variant in _OVER_ALL:
            mean = _mean(scores, [*found])
            yield mean._replace(variant=over_all(MEAN, mean.variant))
            if all(score.value > 0 for score in scores):
                variation = _over(scores, _variation)
                yield variation._replace(variant=over_all(VARIATION, mean.variant), n=mean.n, details=mean.details)


def _of_each(found: Mapping[int, Measured]) -> Iterator[Score]:
    for layer, one in found.items():
        yield from (score._replace(variant=at_layer(layer, score.variant)) for score in one.scores)


def _in_common(found: Sequence[Measured]) -> Iterator[list[Score]]:
    """Yield the scores of every metric and variant that all layers have."""
    by_name = [{(score.metric, score.variant): score for score in one.scores} for one in found]
    for name in by_name[0]:
        if all(name in scores for scores in by_name):
            yield [scores[name] for scores in by_name]


def _mean(scores: Sequence[Score], layers: Sequence[int]) -> Score:
    counts = {score.n for score in scores}
    n = scores[0].n if len(counts) == 1 else sum(score.n or 0 for score in scores)
    unit = {"unit": scores[0].details["unit"]} if "unit" in scores[0].details else {}
    return _over(scores, lambda values: values.mean(0))._replace(n=n, details={"layers": [*layers], **unit})


def _over(scores: Sequence[Score], statistic: _Statistic) -> Score:
    """Return a statistic of the layers' values, (n_layers, ...), and of each draw of them."""
    metric, variant = scores[0].metric, scores[0].variant
    value = float(statistic(torch.tensor([score.value for score in scores], dtype=torch.float64)))
    drawn = _drawn(scores)
    if drawn is not None:
        return Estimate.of(value, statistic(drawn)).score(metric, variant, n=0)
    ends = [[getattr(score, end) for score in scores] for end in ("std_error", "low", "high")]
    if statistic is _variation or any(None in end for end in ends):
        return Score(metric, value, variant)
    std_error, low, high = (sum(end) / len(scores) for end in ends)
    return Score(metric, value, variant, std_error, low, high)


def _variation(values: Tensor) -> Tensor:
    return values.std(0, correction=0) / values.mean(0)


def _drawn(scores: Sequence[Score]) -> Float[Tensor, "n_layers n_resamples"] | None:
    """Return the draws of each layer, where all layers have the same ones."""
    draws = [score.draws for score in scores if score.draws is not None]
    if len(draws) < len(scores) or len({one.drawn_id for one in draws}) > 1:
        return None
    return torch.stack([one.values.double() for one in draws])
