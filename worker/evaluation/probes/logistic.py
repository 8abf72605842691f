"""Logistic probes: of each of many latents alone, all at once by Newton's method, and of a few features together.

A probe of one latent minimises E[log(1 + e^t) − y t] + ridge · w² / 2 with t = w z + b, z standardised on the examples.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

MAX_STEPS = 15
LARGEST_WEIGHT = 1e3
"""|w| at most, of a standardised latent: separable labels have no finite solution."""
_ROUNDING = 1e-7
"""A rise of the loss that float32 sums may show by themselves."""
_CLOSE = 1e-9
"""Predicted fall of the loss by the next step at which a probe is finished."""
_CONSTANT = 1e-6
"""Standard deviation against the mean below which a latent is constant, but for the rounding of float32."""
_FLAT = 1e-12
"""Added to the curvature, which vanishes for a constant latent, and where all examples are far from the boundary."""
_FIRST, _LONGEST = 4.0, 5.0
"""Weight to begin with at most, and the longest step: far off, where p is 0 or 1, Newton's steps are much too long."""
_BLOCK = 128
"""Latents fitted at a time: what is computed of them stays in a cache of some megabytes."""
_MOST_TOGETHER, _CLOSE_TOGETHER, _SMALLEST = 50, 1e-13, 1e-6
""" Steps of one probe of several features, and the fall and the share of a step at which it ends."""


class Scale(NamedTuple):
    """What standardises features: (z − mean) · inverse; inverse is 0 for a constant one, which becomes 0."""

    mean: Float[Tensor, " n"]
    inverse: Float[Tensor, " n"]

    @classmethod
    def of(cls, z: Float[Tensor, "n_examples n"]) -> "Scale":
        """Return the scale of features on these examples."""
        mean = z.mean(0)
        std = z.std(0, correction=0)
        is_constant = std <= _CONSTANT * mean.abs()
        return cls(mean, torch.where(is_constant, 0.0, 1.0 / torch.where(is_constant, 1.0, std)))

    def apply(self, z: Float[Tensor, "n_examples n"]) -> Float[Tensor, "n_examples n"]:
        """Return the features standardised."""
        return (z - self.mean) * self.inverse


class SingleProbes(NamedTuple):
    """A probe of each latent alone, of the standardised latent."""

    weights: Float[Tensor, " n_latents"]
    biases: Float[Tensor, " n_latents"]
    losses: Float[Tensor, " n_latents"]
    """Mean cross-entropy in nats on the examples, without the ridge."""


class _Slopes(NamedTuple):
    """The mean cross-entropy of each probe, and its derivatives in w and b."""

    loss: Tensor
    w: Tensor
    b: Tensor
    ww: Tensor
    wb: Tensor
    bb: Tensor


@torch.no_grad()
def fit_each(
    z: Float[Tensor, "n_latents n_examples"], labels: Bool[Tensor, " n_examples"], *, ridge: float
) -> SingleProbes:
    """Fit a probe to each standardised latent alone; passes over the examples in float32, steps in float64.

    Newton's steps begin at the solution for two normal distributions of one variance, are halved where the loss rises,
    and end where the next would lower it by less than 1e-9, or after 15.
    """
    workspace = z.new_empty(3, min(len(z), _BLOCK), z.shape[1])
    blocks = [_fit_block(block, labels.to(z), ridge, workspace) for block in torch.split(z, _BLOCK)]
    return SingleProbes(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _fit_block(z: Tensor, y: Tensor, ridge: float, workspace: Tensor) -> SingleProbes:
    share = y.mean().double()
    with_label = (z @ y).double() / len(y)
    fit = _of_two_normals(with_label, share)
    step = torch.zeros_like(fit)
    penalised = torch.full_like(with_label, torch.inf)
    losses = penalised.clone()
    live = torch.arange(len(z), device=z.device)
    for _ in range(MAX_STEPS):
        before = fit[:, live]
        now = _slopes(z, before, (with_label[live], share), workspace[:, : len(z)])
        value = now.loss + 0.5 * ridge * before[0].square()
        rose = value > penalised[live] + _ROUNDING
        penalised[live] = torch.where(rose, penalised[live], value)
        newton, fall = _newton_step(now, before[0], ridge)
        after = before + torch.where(rose, -0.5 * step[:, live], newton)
        after[0].clamp_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
        step[:, live] = torch.where(rose, 0.5 * step[:, live], after - before)
        fit[:, live] = after
        going = rose | (fall >= _CLOSE)
        reached = torch.where(going, now.loss, value - fall - 0.5 * ridge * after[0].square())
        losses[live] = torch.where(rose, losses[live], reached)
        if not bool(going.any()):
            break
        if int(going.sum()) <= len(live) // 2:
            live, z = live[going], z[going]
    return SingleProbes(fit[0], fit[1], losses)


def _of_two_normals(with_label: Tensor, share: Tensor) -> Tensor:
    """Return w and b where z of either label is normal with one variance: (2, n_latents), of E[z y] and E[y]."""
    mean_1, mean_0 = with_label / share, -with_label / (1 - share)
    within = 1 - share * mean_1.square() - (1 - share) * mean_0.square()
    weights = ((mean_1 - mean_0) / within.clamp_min(0.05)).clamp(-_FIRST, _FIRST)
    return torch.stack([weights, torch.logit(share) - 0.5 * weights * (mean_1 + mean_0)])


def _slopes(z: Tensor, fit: Tensor, expected: tuple[Tensor, Tensor], workspace: Tensor) -> _Slopes:
    """Return the loss and its slopes at w and b: (2, n). `expected`: E[z y] of each latent, and E[y]."""
    n = z.shape[1]
    with_label, share = expected
    weights, biases = fit.to(z.dtype)[:, :, None]
    t, p, other = workspace  # new tensors would cost more than what is computed
    torch.mul(z, weights, out=t).add_(biases)
    torch.sigmoid(t, out=p)
    # log(1 + e^t) = max(t, 0) − log(max(p, 1 − p)), which loses no digits where p is close to 0 or 1.
    loss = t.relu_().sum(1).double()
    torch.neg(p, out=other).add_(1)
    torch.maximum(p, other, out=t)
    loss -= t.log_().sum(1).double()
    loss = loss / n - fit[0] * with_label - fit[1] * share
    slope_b = p.sum(1).double() / n - share
    curve = other.mul_(p)
    slope_w = p.mul_(z).sum(1).double() / n - with_label
    bb = curve.sum(1).double() / n
    wb = curve.mul_(z).sum(1).double() / n
    ww = curve.mul_(z).sum(1).double() / n
    return _Slopes(loss, slope_w, slope_b, ww, wb, bb)


def _newton_step(now: _Slopes, weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return the step in w and b, and the fall of the penalised loss that it should bring."""
    slope_w = now.w + ridge * weights
    ww, bb = now.ww + ridge + _FLAT, now.bb + _FLAT
    determinant = (ww * bb - now.wb.square()).clamp_min(_FLAT * _FLAT)
    step = torch.stack([now.wb * now.b - bb * slope_w, now.wb * slope_w - ww * now.b]) / determinant
    step *= (_LONGEST / step.abs().amax(0)).clamp(max=1)
    return step, -0.5 * (step[0] * slope_w + step[1] * now.b)


class Probe(NamedTuple):
    """A probe of several standardised features."""

    weights: Float[Tensor, " n_features"]
    bias: Float[Tensor, ""]
    loss: float
    """Mean cross-entropy on the examples, without the ridge."""

    def logits(self, z: Float[Tensor, "n_examples n_features"]) -> Float[Tensor, " n_examples"]:
        """Return t of standardised features."""
        return z @ self.weights + self.bias


@torch.no_grad()
def fit_together(
    z: Float[Tensor, "n_examples n_features"],
    labels: Bool[Tensor, " n_examples"],
    *,
    ridge: float,
    start: Probe | None = None,
) -> Probe:
    """Fit one probe to all standardised features together, float64: Newton's method with halved steps.

    `start`: where to begin, such as the probe of another ridge.
    """
    ones = z.new_ones(len(z), 1)
    x, y = torch.cat([z, ones], dim=1), labels.to(z)
    penalty = x.new_full((x.shape[1],), ridge + _FLAT)
    penalty[-1] = _FLAT
    fit = x.new_zeros(x.shape[1])
    if start is not None:
        fit = torch.cat([start.weights, start.bias[None]])
    else:
        fit[-1] = torch.logit(y.mean())
    value = _penalised(x, y, fit, penalty)
    for _ in range(_MOST_TOGETHER):
        p = torch.sigmoid(x @ fit)
        slope = x.T @ (p - y) / len(y) + penalty * fit
        curve = x.T @ (x * (p * (1 - p))[:, None]) / len(y) + penalty.diag()
        step = torch.linalg.solve(curve, slope)
        if float(slope @ step) < _CLOSE_TOGETHER:
            break
        size = 1.0
        new = _limited(fit - step)
        while size > _SMALLEST and _penalised(x, y, new, penalty) > value:
            size /= 2
            new = _limited(fit - size * step)
        if size <= _SMALLEST:
            break
        fit, value = new, _penalised(x, y, new, penalty)
    return Probe(fit[:-1], fit[-1], float(cross_entropy(x @ fit, y).mean()))


def cross_entropy(logits: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return −log of the probability that each label is given, in nats."""
    return functional.softplus(logits) - labels * logits


def _limited(fit: Tensor) -> Tensor:
    return torch.cat([fit[:-1].clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT), fit[-1:]])


def _penalised(x: Tensor, y: Tensor, fit: Tensor, penalty: Tensor) -> float:
    return float(cross_entropy(x @ fit, y).mean() + 0.5 * (penalty * fit.square()).sum())
