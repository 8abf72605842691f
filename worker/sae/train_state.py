"""Everything that one training changes, so that it can be put away and taken up again bit for bit."""

import copy
import math
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.curves.point import Point, point_of
from orchestrator.errors import TrainingError
from orchestrator.estimates.memory import SMALL_STEP_FLOPS
from worker.sae import manual_gradients
from worker.sae.dead_latents import count_by_layer, find_dead
from worker.sae.init import initialise
from worker.sae.learning_rate import base_lr, lr_factor
from worker.sae.loss import losses, narrowed
from worker.sae.model import SparseAutoencoder
from worker.sae.optimizer import Optimizer
from worker.sae.sparsity_control import SparsityControl
from worker.sae.tiled_encode import select

_T = TypeVar("_T", bound="TrainState")


class TrainState:
    """A sparse autoencoder in training: model, optimiser, counters, curve. Nothing random is drawn after the start."""

    _optimizer: ClassVar[type[Optimizer]] = Optimizer

    def __init__(
        self, config: JobConfig, d_model: int, *, n_layers: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        """Allocate; `fresh` and `restored` fill it."""
        self.model = self._model(config, d_model).to(device)
        self.optimizer = self._optimizer(self.model, config.optimizer, lr=base_lr(config, d_model))
        self._gradients: manual_gradients.Weights | None = None
        self.mu: Float[Tensor, " d_model"] = torch.zeros(d_model, device=device)
        """Mean of the sample."""
        self.variances: tuple[float, ...] = (math.nan,) * n_layers
        """v of each layer that is read: mean ‖x − μ‖² of the sample there; the loss is in units of it."""
        self.dead_after_tokens = config.dead_after_tokens(d_model)
        self.tokens_since_fired = torch.zeros(self.model.n_latents, n_layers, dtype=torch.int64, device=device)
        """(n_latents, n_layers): tokens of text since each latent fired at each layer."""
        target = None if self.model.function.first_coef is None else config.sae.target_l0
        self.sparsity = None if target is None else SparsityControl(target, device=device)
        """What leads the weight of the penalty; None where it is fixed."""
        self.sums: Float[Tensor, " 4"] = torch.zeros(4, dtype=torch.float64, device=device)
        """Loss, AuxK loss, gradient norm and AuxK loss of nothing, summed over the steps since the last point."""
        self.steps_since_point = 0
        self.tokens_seen = 0
        self.aux_tokens = 0
        """Tokens trained on while AuxK was active."""
        self.room_for_dead, self.next_look_tokens = 0, 0
        """What a step in fixed shapes asked last, and when it asks again: where it has room, its sums are others."""
        self.wall_seconds = 0.0
        self.flops_subject = 0.0
        """What the subject did for it: its share of every capture. Like its share of the time, the caller's to add."""
        self.untrained_fvu: float | None = None
        """fvu of the model before its first step; measured by `train`."""
        self.curve: list[Point] = []

    @classmethod
    def fresh(cls, config: JobConfig, sample: Float[Tensor, "n_vectors d_model"], *, n_layers: int = 1) -> "TrainState":
        """Start from a sample of NORMALISED activations, on its device: of the same tokens, one layer after another.

        Raises:
            TrainingError: the sample is empty, not finite, or does not vary.
        """
        state = cls(config, sample.shape[1], n_layers=n_layers, device=sample.device)
        state.mu = sample.mean(0)
        layers = sample.view(n_layers, len(sample) // n_layers, sample.shape[1])
        state.variances = tuple(map(_variance, layers))
        initialise(state.model, layers.transpose(0, 1).flatten(0, 1)[: layers.shape[1]], seed=config.training.seed)
        if state.sparsity and state.model.function.first_coef:
            state.sparsity.start(state.model.function.first_coef / math.sqrt(fmean(state.variances)))
        return state

    @property
    def n_layers(self) -> int:
        """Return of how many layers a batch holds the vectors."""
        return len(self.variances)

    def n_tokens(self, batch: Float[Tensor, "n_vectors d_model"]) -> int:
        """Return the tokens of text in a batch."""
        return len(batch) // self.n_layers

    def differentiate(
        self, batch: Float[Tensor, "n_vectors d_model"], config: JobConfig
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " 2"], bool]:
        """Leave a gradient in every parameter; return the loss, AuxK's two, and whether AuxK was active."""
        return self._by_hand(batch, config) if self.model.selects_per_token else self.by_autograd(batch, config)

    def _by_hand(self, batch: Tensor, config: JobConfig) -> tuple[Tensor, Tensor, bool]:
        model, weights = self.model, manual_gradients.Weights.of(self.model)
        terms = manual_gradients.LossTerms.of(model, config.sae, variances=self.variances)
        encoder, limit = (weights.W_enc, weights.b_enc), self.dead_after_tokens
        # Dead after this batch are those that do not fire in it: AuxK will ask for their pre-activations.
        n_tokens = self.n_tokens(batch)
        at_risk = find_dead(self.tokens_since_fired + n_tokens, self.tokens_seen + n_tokens, limit)
        watched = None if at_risk is None or not terms.aux_coef else manual_gradients.listed(at_risk, terms.k_aux)
        selected = select(batch, weights.b_pre, encoder, k=model.k_widest, dtype=model.product_dtype, watched=watched)
        dead = self.count(*selected.narrowed(model.k))
        found = manual_gradients.forward(weights, batch, selected, terms=terms, dead=dead)
        self._gradients = self._gradients or weights.like()
        manual_gradients.backward(weights, selected, found, terms=terms, out=self._gradients)
        for parameter, gradient in zip(weights, self._gradients, strict=True):
            parameter.grad = gradient
        return found.total, found.aux, dead is not None

    def by_autograd(self, batch: Tensor, config: JobConfig) -> tuple[Tensor, Tensor, bool]:
        """Do the same under autograd: the reference of `_by_hand`, and the only way for the other activations."""
        model = self.model
        encoded = model.encode(batch, k=model.k_widest)
        narrow = narrowed(encoded, model.k)
        dead = self.count(narrow.top_acts.detach(), narrow.top_indices)
        coef = self.sparsity.coef if self.sparsity else None
        made = model, batch, encoded
        found = losses(*made, config=config.sae, variances=self.variances, dead=dead, sparsity_coef=coef)
        found.total.backward()  # type: ignore[no-untyped-call]
        if self.sparsity:
            l0 = (encoded.top_acts > 0).sum(1, dtype=torch.float32).mean()
            n_tokens = self.n_tokens(batch)
            self.sparsity.follow(l0, n_tokens=n_tokens, tokens_seen=self.tokens_seen + n_tokens)
        return found.total.detach(), found.aux.detach(), dead is not None

    def count(self, top_acts: Tensor, top_indices: Tensor | None) -> Tensor | None:
        """Count over a batch the tokens since each latent fired; return which latents are dead, None if none is."""
        self.tokens_since_fired = count_by_layer(top_acts, top_indices, self.tokens_since_fired)
        return find_dead(self.tokens_since_fired, self.tokens_seen + self.n_tokens(top_acts), self.dead_after_tokens)

    def next_lr(self, config: JobConfig) -> float:
        """Return the learning rate of the next step, with warm-up and decay."""
        return self.optimizer.lr * lr_factor(config, self.tokens_seen)

    def count_step(self, n_tokens: int, *, with_aux: bool) -> None:
        """Count one step that was taken, whose share of `self.sums` has been added."""
        self.steps_since_point += 1
        self.tokens_seen += n_tokens
        self.aux_tokens += n_tokens if with_aux else 0

    def averaged(self) -> SparseAutoencoder:
        """Return a copy of the model with the averaged weights, for evaluation."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        model.load_state_dict(self.optimizer.averaged(), strict=False)
        return model

    def best(self) -> SparseAutoencoder:
        """Return a copy of the model for use: the average or the weights, whichever the last point found better."""
        last = self.curve[-1] if self.curve else None
        is_raw = last is not None and last.fvu == last.fvu_raw < last.fvu_averaged
        return copy.deepcopy(self.model).eval().requires_grad_(False) if is_raw else self.averaged()

    def facts(self) -> dict[str, Any]:
        """Return what the config left open and this training settled."""
        model = self.model
        return {
            "d_model": model.d_model,
            "n_latents": model.n_latents,
            "k": model.k,
            "k_aux": model.k_aux,
            "lr": self.optimizer.lr,
            "dead_after_tokens": self.dead_after_tokens,
            **({"variance": self.variances[0]} if self.n_layers == 1 else {"variances": [*self.variances]}),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state, by name."""
        parts = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        own = {"mu": self.mu, "sums": self.sums, "tokens_since_fired": self.tokens_since_fired}
        if self.sparsity:
            own["log_coef"] = self.sparsity.log_coef
        return {**parts, **own, **self.optimizer.tensors()}

    def values(self) -> dict[str, Any]:
        """Return the rest of the state, as JSON can hold it; floats keep every bit."""
        return {
            **{name: getattr(self, name) for name in (*_VALUES, *_LATER_VALUES)},
            "variances": [*self.variances],
            "lr": self.optimizer.lr,
            "n_steps": self.optimizer.n_steps,
            "curve": [list(point) for point in self.curve],
        }

    @classmethod
    def restored(
        cls, config: JobConfig, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, device: torch.device | str
    ) -> "TrainState":
        """Rebuild what `tensors` and `values` describe.

        Raises:
            KeyError: a part of the state is missing.
        """
        d_model, n_layers = len(tensors["mu"]), len(variances_of(values))
        return cls(config, d_model, n_layers=n_layers, device=device)._filled(tensors, values)

    def whole(self) -> "TrainState":
        """Return the state with every latent in one place: itself, unless its latents are divided among devices."""
        return self

    def _model(self, config: JobConfig, d_model: int) -> SparseAutoencoder:
        return SparseAutoencoder(config.sae, d_model, dtype=config.training.encode_dtype)

    def _filled(self: _T, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> _T:
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        before = len(self.sums) - len(tensors["sums"])  # earlier versions did not count what predicting nothing scores
        tensors = {**tensors, "sums": torch.cat([tensors["sums"], tensors["sums"][1 : 1 + before]])}
        self.variances = variances_of(values)
        tensors["tokens_since_fired"] = tensors["tokens_since_fired"].view(-1, self.n_layers)
        for name in ("mu", "sums", "tokens_since_fired"):
            # copy_ into memory torch allocated: a tensor mapped from a file may be aligned otherwise, and a matrix
            # product may round otherwise.
            getattr(self, name).copy_(tensors[name])
        if self.sparsity:
            self.sparsity.log_coef.copy_(tensors["log_coef"])
        for name in _VALUES:
            setattr(self, name, values[name])
        for name in _LATER_VALUES:
            setattr(self, name, values.get(name, 0))
        self.optimizer.lr = values["lr"]
        self.optimizer.restore(dict(tensors), n_steps=values["n_steps"])
        self.curve = [point_of(dict(zip(Point._fields, point, strict=False))) for point in values["curve"]]
        return self


def variances_of(values: Mapping[str, Any]) -> tuple[float, ...]:
    """Return v of each layer from the values of a stored state; those of earlier versions have the one of one layer."""
    return tuple(values["variances"]) if "variances" in values else (values["variance"],)


def _variance(sample: Float[Tensor, "n_tokens d_model"]) -> float:
    """Return mean ‖x − μ‖² of a sample.

    Raises:
        TrainingError: there is none, it is not finite, or it does not vary.
    """
    found = float((sample - sample.mean(0)).square().sum(1, dtype=torch.float64).mean())
    if not (math.isfinite(found) and found > 0):
        raise TrainingError(
            f"the {len(sample)} sampled activations have variance {found}: there is nothing to learn",
            hint="check the hook point, and the subject's dtype (float16 can overflow)",
        )
    return found


def is_small_step(state: TrainState, config: JobConfig) -> bool:
    """Say whether a step is too small for more than one thread: by its shape alone, so in any company."""
    model, n_vectors = state.model, config.training.batch_tokens * state.n_layers
    flops = 2 * n_vectors * model.n_latents * model.d_model
    return type(state) is TrainState and not model.W_enc.is_cuda and flops <= SMALL_STEP_FLOPS


_VALUES = (
    "steps_since_point", "tokens_seen", "aux_tokens", "wall_seconds", "flops_subject", "untrained_fvu",
)  # fmt: skip

_LATER_VALUES = ("room_for_dead", "next_look_tokens")
"""What checkpoints of earlier versions lack."""

Step = Callable[[TrainState, Tensor, JobConfig], None]
"""What takes a state one batch further."""


def train_step(state: TrainState, batch: Float[Tensor, "n_vectors d_model"], config: JobConfig) -> None:
    """Take one training step: losses and gradients, optimiser, counters."""
    total, (aux, nothing), aux_is_active = state.differentiate(batch, config)
    norm = state.optimizer.step(lr=state.next_lr(config))
    state.sums += torch.stack([total, aux, norm, nothing])
    state.count_step(state.n_tokens(batch), with_aux=aux_is_active and config.sae.aux_coef > 0)
