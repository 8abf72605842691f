"""Steps through a compiled graph, where that is wanted and works."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import JobConfig
from worker.sae import manual_gradients
from worker.sae.compiled.replay import Replay
from worker.sae.compiled.step_graph import Graph, Kernels, StepScalars, StepTensors, few, whole_step
from worker.sae.dead_latents import silent_tokens
from worker.sae.native.kernels import use
from worker.sae.native.whole_step import step_in_c
from worker.sae.optimizer import ema_coefficient
from worker.sae.train_state import Step, TrainState, train_step

_STEPS_BETWEEN_LOOKS = 32
"""How often the host waits to learn whether a latent can be dead before the next look, which decides on the graph."""

_GRAPHS = 1024
"""Graphs of one process: three for each job of another shape, and torch would give up after the eighth."""


def stepper(
    state: TrainState, config: JobConfig, *, wanted: str, folder: Path | None, say: Callable[[str], None]
) -> tuple[Step, str]:
    """Return how to take the steps of a training, and in words which way that is; `wanted` is auto or off.

    auto compiles a graph on CUDA alone: on two CPU cores the whole step gained 5% at most, for 20 s of compiling. There
    the kernels in C are used, in this process.
    """
    is_cuda, is_whole = state.model.W_enc.is_cuda, type(state) is TrainState
    if not is_cuda:
        in_c = wanted != "off" and folder is not None and is_whole  # processes that share a job must compute alike
        failed = use(folder if in_c else None)
        if failed or not in_c:
            return train_step, f"plain; {failed}" if failed else "plain"
        return step_in_c(state, config), "kernels in C"
    if wanted == "off" or not is_whole or not state.model.selects_per_token:
        return train_step, "plain"
    step = CompiledStep(config, state, say=say, folder=folder)
    step.compile_first_graph(state)
    return step, "compiled" if step.failed is None else f"plain; {step.failed}"


def _failures() -> tuple[type[Exception], ...]:
    """Return what torch.compile raises where it fails; importing them takes seconds that a CPU's trainer can save."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


class CompiledStep:
    """Takes training steps through up to three graphs: without AuxK, and with it for a few dead latents or for many.

    Where compiling fails `train_step` takes them.
    """

    def __init__(
        self,
        config: JobConfig,
        state: TrainState,
        *,
        say: Callable[[str], None],
        folder: Path | None = None,
        backend: str = "inductor",
    ) -> None:
        """Choose the kernels for a training; a graph is compiled when it is first needed."""
        self._config, self._say = config, say
        self._n_vectors = config.training.batch_tokens * state.n_layers
        self._kernels = Kernels.of(state, self._n_vectors, folder=folder)
        device = state.model.W_enc.device
        # torch 2.13's C++ backend (not the CUDA one) breaks off, with a KeyError, where it fuses the unit rows' norm
        # with what is written in place.
        options: dict[str, Any] | None = None
        if backend == "inductor" and device.type == "cpu":
            options = {"max_fusion_size": 1}
        self._compiled = torch.compile(whole_step, fullgraph=True, dynamic=False, backend=backend, options=options)
        self._replays: dict[Graph, Replay] | None = {} if device.type == "cuda" else None
        """The graphs as the device has them; None where there are none."""
        self._compiled_graphs: set[Graph] = set()
        self.failed: str | None = None
        """Why steps are taken without a graph."""

    def __call__(self, state: TrainState, batch: Float[Tensor, "n_vectors d_model"], config: JobConfig) -> None:
        """Take one step."""
        if self.failed is None:
            try:
                with torch._dynamo.config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=_GRAPHS):
                    self._step(state, batch)
                return
            except _failures() as error:  # raised before anything is computed
                self.failed = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
                self._say(f"torch.compile failed, training goes on without it: {self.failed}")
        train_step(state, batch, config)

    def compile_first_graph(self, state: TrainState) -> None:
        """Compile the first graph, on copies: whether that works is known, and its time spent, before training."""
        copied = copy.deepcopy(state)
        self(copied, state.mu.expand(self._n_vectors, -1).contiguous(), self._config)

    def _step(self, state: TrainState, batch: Tensor) -> None:
        model, optimizer, config = state.model, state.optimizer, self._config
        room = self._room_for_dead(state, batch) if config.sae.aux_coef > 0 else 0
        parts, k_aux, aux_coef, _ = manual_gradients.LossTerms.of(model, config.sae, variances=state.variances)
        graph = Graph(parts, k_aux, aux_coef, config.optimizer, model.product_dtype, room)
        beta1, beta2 = config.optimizer.betas
        t, lr = optimizer.n_steps + 1, state.next_lr(config)
        dead_after, share = state.dead_after_tokens, 1 - ema_coefficient(config.optimizer.ema, t)
        scalars = StepScalars(lr / (1 - beta1**t), math.sqrt(1 - beta2**t), dead_after, share)
        numbers = torch.tensor([*scalars, *state.variances], dtype=torch.float64).to(batch.device, non_blocking=True)
        state.sums += self._run(StepTensors.of(state), batch, numbers, graph)
        optimizer.n_steps += 1
        state.count_step(state.n_tokens(batch), with_aux=room > 0)

    def _run(self, tensors: StepTensors, batch: Tensor, numbers: Tensor, graph: Graph) -> Tensor:
        """Take a step: as a CUDA graph from the second of its kind on, one launch instead of some sixty."""

        def step(batch: Tensor, numbers: Tensor) -> Tensor:
            sums: Tensor = self._compiled(tensors, batch, numbers, graph, self._kernels)
            return sums

        known = None if self._replays is None else self._replays.get(graph)
        if known is not None and known.is_of(tensors):
            return known(batch, numbers)
        if self._replays is not None and graph in self._compiled_graphs:
            try:
                self._replays[graph] = Replay(step, tensors, batch, numbers)
            except RuntimeError as error:  # nothing was computed: a capture only takes down what would be
                self._replays = None
                reason = str(error).strip().partition("\n")[0][:200]
                self._say(f"no CUDA graph, the compiled step is launched kernel by kernel: {reason}")
            else:
                return self._replays[graph](batch, numbers)
        self._compiled_graphs.add(graph)
        return step(batch, numbers)

    def _room_for_dead(self, state: TrainState, batch: Tensor) -> int:
        """Return room for the latents that may be dead in this step: asked once in a while, for all steps until then.

        There are two sizes of it, so two graphs: for a few dead latents, and for all.
        """
        ahead = _STEPS_BETWEEN_LOOKS * state.n_tokens(batch)
        dead_after = state.dead_after_tokens
        if state.tokens_seen + state.n_tokens(batch) <= dead_after:
            return 0
        if state.tokens_seen >= state.next_look_tokens:
            n_dead = int((silent_tokens(state.tokens_since_fired) + ahead > dead_after).sum())
            n = state.model.n_latents
            state.room_for_dead = 0 if not n_dead else few(n) if n_dead <= few(n) else n
            state.next_look_tokens = state.tokens_seen + ahead
        return state.room_for_dead
