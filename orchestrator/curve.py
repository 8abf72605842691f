"""One point of a loss curve, as the trainer measures it and the database keeps it."""

from typing import NamedTuple


class Point(NamedTuple):
    """What one evaluation on the held-out set found. `fvu` is of the EMA weights."""

    tokens_seen: int
    """Training tokens so far."""
    fvu: float
    """Σ‖x−x̂‖² / Σ‖x−μ‖² on the held-out set, EMA weights (numerics: the paper's normalised MSE)."""
    fvu_raw: float
    """The same with the raw weights."""
    loss: float
    """Mean training loss since the last point, AuxK included."""
    aux_loss: float
    """Mean AuxK loss since the last point, before its weight α."""
    dead_share: float
    """Share of latents silent for more than dead_after_tokens."""
    l0: float
    """Mean active latents per held-out token, EMA weights."""
    grad_norm: float
    """Mean global gradient norm since the last point."""
    wall_seconds: float
    """Training time so far, over all attempts; evaluation included."""
    flops_dense: float
    """12·n·D per token, + 6·n·D per token with AuxK active."""
    flops_executed: float
    """2·n·D + 8·k·D per token, + 8·k_aux·D with AuxK active."""
    flops_subject: float
    """2 × subject parameters run × tokens captured."""
