"""A whole training step of a small TopK autoencoder as one call of C, in which other Python threads run."""

import ctypes
from ctypes import POINTER, byref, c_double, c_int64, c_void_p
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import JobConfig
from worker.sae.native.kernels import AdamStep, kernels_for
from worker.sae.tiled_encode import scratch
from worker.sae.train_state import Step, TrainState, is_small_step, train_step

_KEPT = ("exp_avg", "exp_avg_sq", "average")
_MOST_PARTS = 2
_NEVER = 2**62
_DENSE = 16
"""AuxK is dense over the dead latents here, which pays up to this many times k_aux."""


class _Parameter(ctypes.Structure):
    _fields_ = tuple((name, c_void_p) for name in ("weights", *_KEPT))


class _Training(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("n", "d", "n_layers", "n_parts", "k_aux")),
        ("k", c_int64 * _MOST_PARTS),
        ("shares", c_double * _MOST_PARTS),
        ("aux_coef", c_double),
        ("dead_after", c_int64),
        *((name, c_void_p) for name in ("variances", "since", "sums")),
        *((name, _Parameter) for name in ("W_enc", "b_enc", "W_dec", "b_pre")),
    )


class _Batch(ctypes.Structure):
    _fields_ = (("x", c_void_p), ("n_rows", c_int64), ("tokens_seen", c_int64))


def _functions(library: ctypes.CDLL) -> tuple[Any, Any]:
    """Return the function that tells how many bytes a step works in, and the one that takes a step."""
    size, take = library.step_bytes, library.train_step
    size.argtypes = POINTER(_Training), c_int64
    take.argtypes = POINTER(_Training), POINTER(AdamStep), POINTER(_Batch), c_void_p
    size.restype = take.restype = c_int64
    return size, take


class WholeStep:
    """Takes the steps of one training; on one thread, so that they are the same in any company.

    What is read and changed is where `TrainState.tensors` finds it: the memory of a state's tensors does not move.
    """

    def __init__(self, state: TrainState, config: JobConfig) -> None:
        """Point to the tensors of a training that `takes` allows."""
        kernels = kernels_for()
        assert kernels, "asked before"
        self._state = state
        self._size_of, self._take = _functions(kernels.library)
        self._variances = (c_double * state.n_layers)(*state.variances)
        self._training = self._described(state, config)
        self._batch = _Batch()

    @staticmethod
    def takes(state: TrainState, config: JobConfig) -> bool:
        """Say whether the steps of a training are taken so: small ones, of float32, that clip nothing."""
        model = state.model
        return (
            is_small_step(state, config)
            and model.selects_per_token
            and model.product_dtype is None
            and config.optimizer.clip_norm is None
            and model.n_latents <= _DENSE * model.k_aux
            and kernels_for(*model.parameters(), *state.optimizer.tensors().values(), k=model.k_widest) is not None
        )

    def __call__(self, state: TrainState, batch: Float[Tensor, "n_vectors d_model"], config: JobConfig) -> None:
        """Take one training step: losses and gradients, optimiser, counters."""
        assert state is self._state, "these are the tensors of one training"
        batch, n_tokens = batch.contiguous(), state.n_tokens(batch)
        if len(batch) != self._batch.n_rows:
            self._batch.n_rows = len(batch)
            self._n_bytes = self._size_of(byref(self._training), len(batch))
        self._batch.x, self._batch.tokens_seen = batch.data_ptr(), state.tokens_seen + n_tokens
        step = state.optimizer.numbers(state.next_lr(config))
        memory = scratch("step", (self._n_bytes,), batch.device, torch.uint8)
        n_dead = self._take(byref(self._training), byref(step), byref(self._batch), memory.data_ptr())
        state.optimizer.n_steps += 1
        state.count_step(n_tokens, with_aux=n_dead > 0)

    def _described(self, state: TrainState, config: JobConfig) -> _Training:
        model, kept = state.model, state.optimizer.tensors()
        sizes, shares = zip(*model.reconstructions, strict=True)
        parameters = {
            name: _Parameter(value.data_ptr(), *(kept[f"{kind}.{name}"].data_ptr() for kind in _KEPT))
            for name, value in model.named_parameters()
        }
        return _Training(
            n=model.n_latents, d=model.d_model, n_layers=state.n_layers, n_parts=len(sizes), k_aux=model.k_aux,
            k=(c_int64 * _MOST_PARTS)(*sizes), shares=(c_double * _MOST_PARTS)(*shares),
            aux_coef=config.sae.aux_coef, dead_after=state.dead_after_tokens if config.sae.aux_coef else _NEVER,
            variances=ctypes.addressof(self._variances), since=state.tokens_since_fired.data_ptr(),
            sums=state.sums.data_ptr(), **parameters,
        )  # fmt: skip


def step_in_c(state: TrainState, config: JobConfig) -> Step:
    """Return how the steps of a training are taken where the kernels are in use."""
    return WholeStep(state, config) if WholeStep.takes(state, config) else train_step
