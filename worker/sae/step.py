"""One training step of one sparse autoencoder."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config import JobConfig
from worker.sae.optimizer import lr_factor
from worker.sae.trainee import Trainee

Step = Callable[[Trainee, Tensor, JobConfig], None]
"""What takes a trainee one batch further."""


def take(trainee: Trainee, batch: Float[Tensor, "batch_tokens d_model"], config: JobConfig) -> None:
    """Take one training step: losses and gradients, optimiser, counters."""
    total, aux, aux_is_active = trainee.differentiate(batch, config)
    norm = trainee.optimizer.step(factor=lr_factor(config, trainee.tokens_seen))
    trainee.sums += torch.stack([total, aux, norm])
    trainee.steps_since_point += 1
    trainee.tokens_seen += len(batch)
    trainee.aux_tokens += len(batch) if aux_is_active and config.sae.aux_coef > 0 else 0
