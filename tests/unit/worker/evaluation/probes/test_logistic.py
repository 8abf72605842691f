"""Probes of many latents at once, against one after the other with another solver."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from worker.evaluation.probes import logistic
from worker.evaluation.probes.logistic import LARGEST_WEIGHT, Scale, fit_each, fit_together

RIDGE = 1e-6


def made(n_latents: int = 40, n: int = 600, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Return latents that tell a label more or less, and some that are skewed: (n_latents, n)."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(n, generator=generator) < share
    strength = torch.linspace(0, 3, n_latents)[:, None]
    z = torch.randn(n_latents, n, generator=generator) + strength * labels
    z[1::3] = z[1::3].exp()
    z[2::3] = z[2::3].relu() * 50 + 1000
    return Scale.of(z.T).apply(z.T).T.contiguous(), labels


def reference(z: Tensor, labels: Tensor, ridge: float) -> tuple[NDArray[np.float64], float]:
    """Return w (all features) and b, and the cross-entropy, by BFGS in float64."""
    x, y = z.double().numpy().reshape(-1, len(labels)), labels.double().numpy()

    def loss(fit: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        t = fit[:-1] @ x + fit[-1]
        wrong = 1 / (1 + np.exp(-t)) - y
        slope = np.append(x @ wrong / len(y) + ridge * fit[:-1], wrong.mean())
        return float((np.logaddexp(0, t) - y * t).mean() + 0.5 * ridge * (fit[:-1] ** 2).sum()), slope

    found = minimize(loss, np.zeros(len(x) + 1), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    return found.x, float(found.fun - 0.5 * ridge * (found.x[:-1] ** 2).sum())


@pytest.mark.parametrize("share", [0.5, 0.03])
@pytest.mark.parametrize("ridge", [RIDGE, 0.1])
def test_all_at_once_are_as_each_alone(share: float, ridge: float) -> None:
    z, labels = made(share=share)
    found = fit_each(z, labels, ridge=ridge)
    for i in range(len(z)):
        fit, loss = reference(z[i], labels, ridge)
        assert found.losses[i].item() == pytest.approx(loss, abs=1e-6)
        assert found.weights[i].item() == pytest.approx(fit[0], abs=2e-3, rel=2e-3)
        assert found.biases[i].item() == pytest.approx(fit[1], abs=2e-3, rel=2e-3)


def test_slopes_are_those_of_the_loss() -> None:
    z, labels = made()
    z = z.double()
    expected = (z @ labels.double() / len(labels), labels.double().mean())
    fit = torch.randn(2, len(z), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def slopes(fit: Tensor) -> logistic._Slopes:
        return logistic._slopes(z, fit, expected, torch.empty(3, *z.shape, dtype=torch.float64))

    here, step = slopes(fit), 1e-6
    for row, first, second in ((0, here.w, (here.ww, here.wb)), (1, here.b, (here.wb, here.bb))):
        move = torch.zeros_like(fit)
        move[row] = step
        above, below = slopes(fit + move), slopes(fit - move)
        torch.testing.assert_close((above.loss - below.loss) / (2 * step), first, atol=1e-8, rtol=1e-6)
        torch.testing.assert_close((above.w - below.w) / (2 * step), second[0], atol=1e-8, rtol=1e-6)
        torch.testing.assert_close((above.b - below.b) / (2 * step), second[1], atol=1e-8, rtol=1e-6)


def test_however_the_latents_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    z, labels = made()
    whole = fit_each(z, labels, ridge=RIDGE)
    monkeypatch.setattr(logistic, "_BLOCK", 7)
    torch.testing.assert_close(fit_each(z, labels, ridge=RIDGE).losses, whole.losses, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        fit_each(z[torch.tensor([5, 5])], labels, ridge=RIDGE).losses, whole.losses[[5, 5]], atol=1e-6, rtol=0
    )


def test_separable_labels_end_at_a_finite_weight() -> None:
    labels = torch.arange(400) < 100
    z = torch.stack([labels.float(), -labels.float(), labels + torch.linspace(0, 0.99, 400)])
    z = Scale.of(z.T).apply(z.T).T.contiguous()
    for ridge in (RIDGE, 0.0):
        found = fit_each(z, labels, ridge=ridge)
        assert found.weights.abs().max() <= LARGEST_WEIGHT
        assert found.losses.isfinite().all()
        assert (found.losses[:2] < 1e-3).all()
        probe = fit_together(z[:1].T.double(), labels, ridge=ridge)
        assert probe.weights.abs().max() <= LARGEST_WEIGHT
        assert probe.loss < 1e-3
    assert found.weights[0] > 0 > found.weights[1]


def test_a_constant_latent_gives_the_entropy_of_the_labels() -> None:
    labels = torch.arange(100) < 25
    z = torch.stack(
        [torch.full((100,), -1e6), torch.full((100,), -1e6) + torch.linspace(0, 0.1, 100), torch.zeros(100)]
    )
    scaled = Scale.of(z.T).apply(z.T).T.contiguous()
    assert (scaled == 0).all()  # what varies by the rounding of float32 is constant, too
    found = fit_each(scaled, labels, ridge=0.0)
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(found.losses, torch.full((3,), entropy, dtype=torch.float64))


def test_one_probe_of_several_features() -> None:
    z, labels = made(6)
    for ridge in (RIDGE, 0.1):
        probe = fit_together(z.T.double(), labels, ridge=ridge)
        fit, loss = reference(z, labels, ridge)
        assert probe.loss == pytest.approx(loss, abs=1e-9)
        torch.testing.assert_close(
            torch.cat([probe.weights, probe.bias[None]]), torch.from_numpy(fit), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(fit_together(z.T.double(), labels, ridge=ridge, start=probe).weights, probe.weights)


def test_the_best_of_n_noisy_latents_is_too_good_by_about_ln_n() -> None:
    """Twice the gain in log-likelihood of a latent of noise is χ² with one degree of freedom: at most about 2 ln n."""
    generator = torch.Generator().manual_seed(0)
    n_latents, n = 4096, 1000
    labels = torch.arange(n) < n // 2
    z = torch.randn(n, n_latents, generator=generator)
    z = Scale.of(z).apply(z).T.contiguous()
    found = fit_each(z, labels, ridge=RIDGE)
    too_good = n * (math.log(2) - found.losses)
    assert too_good.mean() == pytest.approx(0.5, rel=0.1)
    assert 0.6 * math.log(n_latents) < too_good.max() < 1.4 * math.log(n_latents)
