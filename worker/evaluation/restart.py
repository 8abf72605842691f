"""Run a language model from the middle: only the blocks behind a stored residual stream, with a hook point replaced.

Nothing here knows an architecture by name. The model's own forward builds masks, rotary embeddings, the final norm and
the head; the blocks below do nothing for the time of a call, and the last of them gives what was stored of it.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orchestrator.errors import ConfigError, SubjectError
from worker.subject.hook_points import block_names
from worker.subject.hook_sites import HookPoint
from worker.subject.model import Replace, Subject, read, run_patched

_PROBE = (2, 8)
"""Contexts and tokens of the forward passes that tell whether a model can be restarted."""


class SkippedBlock(NamedTuple):
    """A block that is not run."""

    name: str
    n_outputs: int | None
    """Length of the tuple it returns, the hidden states first; None: it returns them alone."""


@dataclass(frozen=True)
class Restart:
    """The part of a language model that depends on a hook point, run from what was stored of the part below.

    A hook that reads the output of a block (resid_post) restarts behind that block; every other hook in a block
    restarts before the block, and the block runs with the hook replaced. The whole model runs, and nothing is stored,
    where the hook is in no block or in the first one, and where blocks hand on more than the residual stream.
    """

    subject: Subject
    skipped: tuple[SkippedBlock, ...] = ()
    """The blocks that are not run."""
    ignores_ids: bool = False
    """Whether what is restarted depends on the stored stream and what is replaced in it alone."""
    has_linear_head: bool = False
    """Whether the logits are the head's product with what `hidden` returns and no more, in float32."""

    @classmethod
    def of(cls, subject: Subject) -> "Restart":
        """Find where a model is restarted, and check on a real forward pass that it gives what the whole one does."""
        names = _blocks_below(subject)
        ids = _probe_ids(subject)
        outputs: dict[str, int | None] = {}
        with ExitStack() as stack:
            for name in names:
                keep = partial(_keep, outputs, name)
                stack.enter_context(_removed(subject.model.get_submodule(name).register_forward_hook(keep)))
            whole = run_patched([subject], ids, [_halved]).float()
        found = cls(subject, tuple(SkippedBlock(name, outputs.get(name)) for name in names))
        slack = 16 * torch.finfo(subject.dtype).eps * float(whole.abs().max())
        found = found if found._difference(whole, ids) <= slack else cls(subject)
        is_linear = found._difference_of_head(ids) <= slack
        return replace(found, ignores_ids=found._ignores_ids(whole, slack), has_linear_head=is_linear)

    @classmethod
    def known(cls, subject: Subject, facts: Mapping[str, Tensor]) -> "Restart":
        """Return what `of` found of the same model and hook point, by its `facts`."""
        lengths = [None if n < 0 else n for n in facts["n_outputs"].tolist()]
        skipped = tuple(SkippedBlock(*block) for block in zip(_blocks_below(subject), lengths, strict=False))
        ignores_ids, has_linear_head = facts["is"].tolist()
        return cls(subject, skipped, ignores_ids, has_linear_head)

    @property
    def facts(self) -> dict[str, Tensor]:
        """Return what was found, for `known`."""
        lengths = [-1 if block.n_outputs is None else block.n_outputs for block in self.skipped]
        return {
            "n_outputs": torch.tensor(lengths, dtype=torch.int64),
            "is": torch.tensor([self.ignores_ids, self.has_linear_head]),
        }

    @property
    def head(self) -> nn.Linear:
        """The module that makes logits of hidden states, where `has_linear_head`."""
        module: nn.Linear = self.subject.model.get_output_embeddings()
        return module

    @property
    def start(self) -> HookPoint | None:
        """What is stored: the output of the last block that is not run; None: nothing, the whole model runs."""
        return HookPoint(self.skipped[-1].name) if self.skipped else None

    @property
    def is_at_hook(self) -> bool:
        """Whether what is stored is what the hook reads, so that the activations of the hook are enough."""
        return bool(self.skipped) and _reads_output_of(self.subject.hook, self.skipped[-1].name)

    def capture(self, input_ids: Int[Tensor, "batch context"]) -> Float[Tensor, "batch context width"] | None:
        """Return what the restart needs of some contexts, in the model's precision; None: it needs nothing."""
        if self.start is None:
            return None
        return read([replace(self.subject, hook=self.start)], input_ids)[0].clone()

    def __call__(
        self,
        input_ids: Int[Tensor, "batch context"],
        stored: Float[Tensor, "batch context width"] | None,
        replacement: Replace,
    ) -> Float[Tensor, "batch context vocabulary"]:
        """Return the logits of `run_patched`, from what `capture` gave of these contexts; in its precision."""
        return self._run(input_ids, stored, replacement)

    def continued(
        self, input_ids: Int[Tensor, "batch context"], stored: Float[Tensor, "batch context width"]
    ) -> Float[Tensor, "batch context vocabulary"]:
        """Return the logits from what was stored, with nothing replaced; gradients flow back into `stored`."""
        with self._skipping(stored):
            logits: Tensor = self.subject.model(input_ids=input_ids, use_cache=False).logits
        return logits

    def at(
        self,
        chosen: Int[Tensor, " n_chosen"],
        input_ids: Int[Tensor, "batch context"],
        stored: Float[Tensor, "batch context width"] | None,
        replacement: Replace,
    ) -> Float[Tensor, "n_chosen vocabulary"]:
        """Return the logits of some positions of all contexts, counted through; of the others none are computed."""

        def choose(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *more = args
            return (hidden.flatten(0, 1)[chosen][None], *more)

        with _removed(self.subject.model.get_output_embeddings().register_forward_pre_hook(choose)):
            return self._run(input_ids, stored, replacement)[0]

    def hidden(
        self,
        input_ids: Int[Tensor, "batch context"],
        stored: Float[Tensor, "batch context width"] | None,
        replacement: Replace,
    ) -> Float[Tensor, "batch context width"]:
        """Return what the head reads; of the logits those of one position are computed."""
        found: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, *more = args
            found.append(hidden)
            return (hidden[:, :1], *more)

        with _removed(self.head.register_forward_pre_hook(keep)):
            self._run(input_ids, stored, replacement)
        (hidden,) = found
        return hidden

    def _run(self, input_ids: Tensor, stored: Tensor | None, replacement: Replace) -> Tensor:
        with ExitStack() as stack:
            if self.skipped:
                assert stored is not None, "what capture gave of these contexts"
                stack.enter_context(self._skipping(stored))
            return run_patched([self.subject], input_ids, [replacement])

    @contextmanager
    def _skipping(self, stored: Tensor) -> Iterator[None]:
        # A copy: the blocks behind may write in place, and inference tensors refuse that elsewhere.
        given = stored.to(self.subject.device, copy=True)
        with ExitStack() as stack:
            for block in self.skipped[:-1]:
                stack.enter_context(self._replaced_forward(block, None))
            stack.enter_context(self._replaced_forward(self.skipped[-1], given))
            yield

    @contextmanager
    def _replaced_forward(self, block: SkippedBlock, given: Tensor | None) -> Iterator[None]:
        """Let a block return `given`, else its input: the module stays, with all that decoders read of it."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden_states = (args[0] if args else kwargs["hidden_states"]) if given is None else given
            if block.n_outputs is None:
                return hidden_states
            return (hidden_states, *[None] * (block.n_outputs - 1))

        module = self.subject.model.get_submodule(block.name)
        own = module.__dict__.get("forward")
        module.forward = forward
        try:
            yield
        finally:
            del module.forward
            if own is not None:
                module.forward = own

    def _difference(self, whole: Tensor, ids: Tensor) -> float:
        stored = self.capture(ids)
        run_patched([self.subject], ids.flip(1), [_halved])  # what blocks hand on otherwise is now of another text
        try:
            return float((self(ids, stored, _halved).float() - whole).abs().max())
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError, SubjectError):
            return math.inf  # whatever the architecture wants of a block that did not run

    def _ignores_ids(self, whole: Tensor, slack: float) -> bool:
        if not self.is_at_hook:
            return False
        ids = _probe_ids(self.subject)
        return float((self(ids.flip(1), self.capture(ids), _halved).float() - whole).abs().max()) <= slack

    def _difference_of_head(self, ids: Tensor) -> float:
        """Return by how much logits of the whole model differ from the head's product; inf where it has none such."""
        whole = Restart(self.subject)
        try:
            head = whole.head
            if type(head) is not nn.Linear or head.weight.dtype != torch.float32:
                return math.inf
            logits, hidden = whole(ids, None, _halved), whole.hidden(ids, None, _halved)
            return float((head(hidden) - logits).abs().max()) if logits.dtype == torch.float32 else math.inf
        except (TypeError, ValueError, AttributeError, RuntimeError):
            return math.inf  # it has no head, or calls it otherwise


def _blocks_below(subject: Subject) -> list[str]:
    """Return the names of the blocks that a hook does not depend on, or that end with it."""
    try:
        blocks = block_names(subject.model)
    except ConfigError:
        return []
    inside = [i for i, name in enumerate(blocks) if f"{subject.hook.name}.".startswith(f"{name}.")]
    if not inside:
        return []
    (block,) = inside
    is_behind = _reads_output_of(subject.hook, blocks[block])
    return blocks[: block + 1] if is_behind else blocks[:block]


def _reads_output_of(hook: HookPoint, block: str) -> bool:
    return hook.name == block and hook.end == "output"


def _keep(outputs: dict[str, int | None], name: str, _module: nn.Module, _args: Any, output: Any) -> None:
    outputs[name] = len(output) if isinstance(output, tuple) else None


@contextmanager
def _removed(handle: RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _probe_ids(subject: Subject) -> Int[Tensor, "batch context"]:
    return torch.arange(math.prod(_PROBE), device=subject.device).view(_PROBE) % subject.vocabulary


def _halved(x: Tensor) -> Tensor:
    return x / 2
