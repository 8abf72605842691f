"""How far a lens is from the model: KL of next-token probabilities, layer by layer, by the model's own norm and head.

Nothing here knows an architecture by name: the model itself runs from behind its last block (`restart`), so that its
final norm, its head, and what it does to logits (Gemma's soft cap, Cohere's scale) are what they are in the model.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orchestrator.errors import ConfigError, SubjectError
from worker.evaluation.restart import Restart
from worker.subject.model import Subject, check_widths, read

_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits of one layer at a time: 64 MB on a CPU, 512 MB on a GPU; some five tensors of that size are alive at once."""
_PROBE_TOKENS = 8

Translate = Callable[[int, Tensor], Tensor]
"""Maps the output of a block, its number first, to where the head reads it."""


class Part(NamedTuple):
    """Some contexts of a batch, and what the model says of them."""

    ids: Int[Tensor, "n_contexts context"]
    is_measured: Bool[Tensor, "n_contexts context"]
    residuals: Sequence[Float[Tensor, "n_contexts context d_model"]]
    """Output of each block but the last, float32."""
    log_p: Float[Tensor, "n_measured vocabulary"]
    """The model's own next-token log-probabilities, float32."""


class Divergence:
    """KL(final ‖ lens) at every layer of one model."""

    def __init__(self, subject: Subject) -> None:
        """Find the way from the last block to the logits, and check that it gives what the whole model does.

        Raises:
            ConfigError: the model has one block alone.
            SubjectError: its blocks hand on more than the residual stream, or are of several widths.
        """
        places = subject.config.model_copy(update={"layers": "all", "layer": None}).places(subject.n_layers)
        if len(places) < 2:
            raise ConfigError(
                f"{subject.config.model} has {len(places)} block: a tuned lens translates the outputs of those before "
                "the last, and there is none",
                hint="Give a model of two blocks or more.",
            )
        self._views = [subject.at(place) for place in places]
        check_widths(self._views)
        self._restart = Restart.of(self._views[-1])
        if not self._restart.is_at_hook:
            _check_finite(subject)
            raise SubjectError(
                f"{type(subject.model).__name__} cannot be run from the output of its last block alone",
                hint="Its blocks hand on more than the residual stream; a lens of it cannot be trained here.",
            )

    @property
    def n_layers(self) -> int:
        """Return the number of blocks."""
        return len(self._views)

    @property
    def d_model(self) -> int:
        """Return the width of the residual stream."""
        return self._views[-1].d_model

    def parts(self, ids: Tensor, is_measured: Tensor) -> Iterator[Part]:
        """Yield a batch in parts whose logits fit in memory: of one size always, so that sums are the same again.

        Shapes:
            ids, is_measured (n_contexts, context)
        """
        last = self._views[-1]
        n_logits = _LOGITS.get(last.device.type, _LOGITS["cpu"])
        size = max(1, n_logits // (last.vocabulary * ids.shape[1]))
        for some, mask in zip(torch.split(ids, size), torch.split(is_measured, size), strict=True):
            some, mask = some.to(last.device), mask.to(last.device)
            *before, end = (found.float().clone() for found in read(self._views, some))
            with torch.no_grad():
                log_p = self._log_probabilities(end, some, mask)
            yield Part(some, mask, before, log_p)

    def kl(self, part: Part, hidden: Float[Tensor, "n_contexts context d_model"]) -> Float[Tensor, ""]:
        """Return the KL, summed over the measured positions, of what the head makes of some vectors; nats."""
        log_q = self._log_probabilities(hidden, part.ids, part.is_measured)
        return torch.nn.functional.kl_div(log_q, part.log_p, log_target=True, reduction="sum")

    @torch.no_grad()
    def kls(self, ids: Tensor, is_measured: Tensor, translate: Translate, *, alive: Callable[[], None]) -> list[float]:
        """Return the mean KL of each layer over a text, nats per token; of the last layer 0.

        Shapes:
            ids, is_measured (n_contexts, context)
        """
        sums = [0.0] * (self.n_layers - 1)
        for part in self.parts(ids, is_measured):
            for layer, x in enumerate(part.residuals):
                sums[layer] += float(self.kl(part, translate(layer, x)))
                alive()
        return [*(total / int(is_measured.sum()) for total in sums), 0.0]

    def _log_probabilities(self, hidden: Tensor, ids: Tensor, is_measured: Tensor) -> Tensor:
        last = self._views[-1]
        logits = self._restart.continued(ids, hidden.to(last.dtype))
        return torch.log_softmax(logits[is_measured].float(), dim=-1)


def _check_finite(subject: Subject) -> None:
    """Refuse a model whose own logits are not finite: nothing can be compared with them.

    Raises:
        SubjectError: says so.
    """
    ids = torch.arange(_PROBE_TOKENS, device=subject.device)[None] % subject.vocabulary
    with torch.no_grad():
        logits = subject.model(input_ids=ids, use_cache=False).logits
    if not logits.isfinite().all():
        raise SubjectError(
            f"the next-token logits of {subject.config.model} are not finite",
            hint="Set subject.dtype: float32 (or bfloat16).",
        )
