"""Forward batches, all of one size: contexts -> raw activations at every hook point asked for."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.errors import SubjectError
from orchestrator.estimates.memory import CPU_PASS_TOKENS
from worker.data.token_file import TokenFile
from worker.subject.hook_sites import HookPoint
from worker.subject.model import Subject, read

CPU_TOKENS = CPU_PASS_TOKENS
"""Tokens of a forward batch on a CPU: more gains nothing there, and the matrices still fit its caches."""
_CUDA_TOKENS = (2048, 65_536)
_SHARE_OF_MEMORY = 1 / 32
_TENSORS_ALIVE = 12
"""Tensors of the widest layer's size that a block holds at once, at most; gelu_new alone makes five."""


class ForwardBatches:
    """Forward batches of one model over one text, read at the hook points of some views of the model.

    Every batch holds `size` contexts, the last one filled up with repeats. So a context's values depend neither on how
    many others were asked for nor, on a CPU, on which: captured now or read from disk, they are the same.
    """

    def __init__(self, subjects: Sequence[Subject], tokens: TokenFile) -> None:
        """Prepare to read the hook points of some views, each once."""
        self.subjects = list({subject.hook: subject for subject in subjects}.values())
        self.tokens = tokens
        self.device = self.subjects[0].device
        self.size = max(1, tokens_per_pass(self.subjects[0], tokens.context_length) // tokens.context_length)

    @property
    def hooks(self) -> list[HookPoint]:
        """Return the hook points, in the order of the tensors that a call returns."""
        return [subject.hook for subject in self.subjects]

    def prepare(self, contexts: NDArray[np.int64]) -> None:
        """Take note of the contexts that the next calls ask for; a cache captures what is missing of them."""

    def __call__(self, contexts: NDArray[np.int64]) -> list[Tensor]:
        """Return the activations of at most `size` contexts: one (n, context, d_model) for each hook point."""
        assert 0 < len(contexts) <= self.size
        full = contexts if len(contexts) == self.size else np.resize(contexts, self.size)
        ids = torch.from_numpy(self.tokens.contexts(full))
        if self.device.type == "cuda":
            ids = ids.pin_memory().to(self.device, non_blocking=True)
        return [found[: len(contexts)] for found in read(self.subjects, ids)]

    def check(self, found: Tensor, is_trained: Tensor, contexts: NDArray[np.int64], *, subject: Subject) -> None:
        """Refuse activations of trained positions that are not finite.

        Shapes:
            found (len(contexts), context, d_model); is_trained (len(contexts), context), bool
        Raises:
            SubjectError: names the first token with such values.
        """
        if torch.isfinite(found.sum(dtype=torch.float32)):  # one sum finds any NaN or infinity, wherever it is
            return
        bad = np.argwhere((~torch.isfinite(found).all(dim=-1) & is_trained).cpu().numpy())
        if not len(bad):
            return
        row, position = (int(i) for i in bad[0])
        token = int(self.tokens.contexts(contexts[row : row + 1])[0, position])
        raise SubjectError(
            f"activations at {subject.hook} are not finite: token {position} of context {contexts[row]} "
            f"(id {token}), {len(bad)} tokens in that pass",
            hint="Set subject.dtype: float32 (or bfloat16), or read another hook point.",
        )


def tokens_per_pass(subject: Subject, context_length: int) -> int:
    """Return the tokens of a forward batch: fixed on a CPU, on a GPU a power of two that follows from its memory.

    It comes from the size of the memory, not from what is free: on the same kind of GPU a resumed job finds the same
    number, and so the same sums.
    """
    if subject.device.type == "cpu":
        return CPU_TOKENS
    total = torch.cuda.get_device_properties(subject.device).total_memory
    return tokens_within(int(total * _SHARE_OF_MEMORY), bytes_per_token(subject, context_length))


def tokens_within(n_bytes: int, per_token: int) -> int:
    """Return the largest power of two of tokens that fits in memory, within the limits of a forward batch on a GPU."""
    least, most = _CUDA_TOKENS
    return int(min(most, max(least, 1 << (n_bytes // per_token).bit_length() - 1)))


def bytes_per_token(subject: Subject, context_length: int) -> int:
    """Return about the most bytes a forward pass holds for each of its tokens, weights aside."""
    config = subject.model.config.get_text_config()
    widest = max(config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    weights = next(subject.model.parameters())
    # Attention by products of whole matrices keeps scores, mask and weights of every head.
    scores = 0 if attention(subject) == "sdpa" else 3 * config.num_attention_heads * context_length
    return int(weights.element_size() * (_TENSORS_ALIVE * widest + scores))


def attention(subject: Subject) -> str:
    """Return which implementation of attention the model runs; sdpa wherever its architecture supports it."""
    return str(subject.model.config.get_text_config()._attn_implementation)
