"""How often the truth lies in the 90% interval of each coefficient of L(N), L(C), L(N,K) and T(N).

Planted jobs: L(N) with a 0.9, b −0.45, e 0.08 at ten and at six sizes from 2^9 to 2^18; equation 3 of the paper at
2^11 … 2^21 by k = 8 … 512, and at 2^9 … 2^14 by k = 8 … 64; T(N) with p = 0.6 at ten sizes; L(C) as the envelope of
curves 0.05 + 2·n^(−0.5) + 200·t^(−0.6) of eight sizes, one error per job.
Errors of ln(loss) are normal, with a standard deviation of 0.2, 1 or 2%; at 1% also with one job, drawn at random, that
is 20% off (too high), and with a fifth of the cells missing.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from orchestrator.curves.point import Point
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.types import JobMeasurement, LawName
from tests.job_measurements import EQUATION_3, K_OF_G1, N_OF_G1, line, measured, point, surface

LINE = {"a": 0.9, "b": -0.45, "e": 0.08}
TEN = tuple(2**e for e in range(9, 19))
SIX = (*TEN[::2], TEN[-1])
EIGHT = tuple(2**e for e in range(7, 15))
_E, _A, _P, _B, _Q = 0.05, 2.0, 0.5, 200.0, 0.6
"""Of a curve: E + A·n^(−P) + B·t^(−Q)."""
_FLOPS = 12.0 * 64
"""Of a latent and token at d_model = 64."""


class Case(NamedTuple):
    """What is wrong with the jobs besides their noise."""

    name: str
    noise: float
    off: float = 0.0
    """By how much one job is off."""
    missing: float = 0.0
    """Share of the cells that have no job."""


CASES = (
    Case("noise 0.2%", 0.002), Case("noise 1%", 0.01), Case("noise 2%", 0.02),
    Case("1%, one job 20% off", 0.01, off=0.2), Case("1%, 20% of cells missing", 0.01, missing=0.2),
)  # fmt: skip


def _of_compute() -> dict[str, float]:
    """Return the envelope's A, α and e: over n·t = C / FLOPS the power terms are least at one t."""
    alpha = _P * _Q / (_P + _Q)
    t = (_Q * _B / (_P * _A)) ** (1 / (_P + _Q))  # at n·t = 1
    return {"A": (_A * t**_P + _B * t**-_Q) * _FLOPS**alpha, "alpha": alpha, "e": _E}


def _curve(n: int) -> tuple[Point, ...]:
    places = np.geomspace(2.0**13, 2.0**24, 45)
    losses = _E + _A * n**-_P + _B * places**-_Q
    return tuple(point(int(t), float(loss), _FLOPS * n * t) for t, loss in zip(places, losses, strict=True))


def _curved(n: int) -> JobMeasurement:
    curve = _curve(n)
    return measured(n, curve=curve, fvu=curve[-1].fvu)


class Planted(NamedTuple):
    """Jobs that follow a law."""

    name: str
    law: LawName
    truth: dict[str, float]
    """The coefficients."""
    plant: Callable[[], list[JobMeasurement]]


def _line(sizes: Sequence[int]) -> list[JobMeasurement]:
    return line(sizes, a=LINE["a"], b=LINE["b"], e=LINE["e"])


def _grid(sizes: Sequence[int], ks: Sequence[int]) -> list[JobMeasurement]:
    return [measured(n, k, surface(n, k)) for n in sizes for k in ks]


PLANTED = (
    Planted("L(N), 10 sizes", "ln", LINE, lambda: _line(TEN)),
    Planted("L(N), 6 sizes", "ln", LINE, lambda: _line(SIX)),
    Planted("L(C), 8 sizes", "lc", _of_compute(), lambda: [_curved(n) for n in EIGHT]),
    Planted("L(N,K), 6 × 7", "lnk", EQUATION_3, lambda: _grid(N_OF_G1, K_OF_G1)),
    Planted("L(N,K), 6 × 4", "lnk", EQUATION_3, lambda: _grid(TEN[:6], K_OF_G1[:4])),
    Planted("T(N), 10 sizes", "tn", {"A": 5e4, "p": 0.6}, lambda: [measured(n, tokens=5e4 * n**0.6) for n in TEN]),
)


def coverage(repetitions: int, *, refits: int) -> list[dict[str, str]]:
    """Return a row for each law and case: the share of repetitions in which each coefficient's interval is true."""
    asked = list(product(range(len(PLANTED)), CASES, range(repetitions), [refits]))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        held = list(pool.map(_held, asked, chunksize=max(1, repetitions // 10)))
    rows = []
    for at, (planted, case) in enumerate(product(PLANTED, CASES)):
        shares = np.mean(held[at * repetitions : (at + 1) * repetitions], axis=0)
        found = ", ".join(f"{name} {share:.0%}" for name, share in zip(planted.truth, shares, strict=True))
        rows.append({"law": planted.name, "case": case.name, "truth in the 90% interval": found})
    return rows


def _held(asked: tuple[int, Case, int, int]) -> list[bool]:
    """Say of which coefficients the interval holds the truth; one that the printed form lacks does not."""
    number, case, seed, refits = asked
    planted = PLANTED[number]
    [found] = fit(planted.law, disturbed(planted.plant(), case, seed), n_bootstrap=refits, seed=seed)
    there = found.coefficients
    return [name in there and there[name].low <= value <= there[name].high for name, value in planted.truth.items()]


def disturbed(rows: list[JobMeasurement], case: Case, seed: int) -> list[JobMeasurement]:
    """Return jobs with errors as the case has them."""
    random = np.random.default_rng(seed)
    kept = sorted(random.permutation(len(rows))[: round(len(rows) * (1 - case.missing))].tolist())
    errors = case.noise * random.normal(size=len(rows))
    errors[random.choice(kept)] += np.log1p(case.off)
    return [_times(rows[at], float(np.exp(errors[at]))) for at in kept]


def _times(row: JobMeasurement, factor: float) -> JobMeasurement:
    """Return a job whose losses and tokens are larger by a factor."""
    tokens = {epsilon: value and value * factor for epsilon, value in row.tokens_to_convergence.items()}
    curve = tuple(one._replace(fvu=one.fvu * factor) for one in row.curve)
    return replace(row, fvu=(row.fvu or 0.0) * factor, tokens_to_convergence=tokens, curve=curve)
