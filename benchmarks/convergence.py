"""How often the plateau rule, L∞ and T(1%) are right, on curves of known limit.

Curves L∞ + a · t^(−b), half above L∞ at the first of four points per doubling, with a relative noise on every point.
The rule (epsilon 0.005) ends them, at most after twenty doublings; then the same where a budget of twice T(1%) does.
Printed for each b and noise: how many doublings after the noiseless rule it ended them, the share of T(1%) that is
censored, the median of T(1%) over the truth where it is not, how often its 90% interval holds the truth (of a censored
one: its bound is below it), and the same of L∞ ± 1.645 standard errors. Then how often curves that fall by 0.6% or 0.8%
per doubling for ever "converge", and how often T(1%) of curves that fall by 0.3% per doubling, which may converge, is
censored, as it must be.
"""

import argparse
import math
import time
from typing import Any

import numpy as np

from benchmarks.interleaved_timing import table
from orchestrator.curves.convergence import has_converged
from orchestrator.curves.limit import tail_fit, tokens_to_convergence

FIRST, DOUBLINGS, EPSILON, EXCESS = 8192, 20, 0.005, 0.5
TOKENS = [round(FIRST * 2 ** (i / 4)) for i in range(4 * DOUBLINGS + 1)]
DOUBLED = np.log2(np.array(TOKENS) / FIRST)
NOISES = (0.0005, 0.001, 0.002)
Curve = list[tuple[int, float]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="10 repetitions instead of 200")
    options.add_argument("--repetitions", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    repetitions = chosen.repetitions or (10 if chosen.short else 200)
    random, started = np.random.default_rng(chosen.seed), time.perf_counter()
    kinds = [(ends, b, noise) for ends in ("rule", "budget") for b in (0.3, 0.5, 1.0) for noise in NOISES]
    cells = [_limit_and_tokens(*kind, repetitions, random) for kind in kinds]
    print(f"{repetitions} repetitions, epsilon {EPSILON:g}, numpy {np.__version__}\n\n{table(cells)}\n")
    endless = [_endless(fall, noise, repetitions, random) for fall in (0.006, 0.008, 0.003) for noise in NOISES]
    print(f"{table(endless)}\n\n{time.perf_counter() - started:.0f} s")


def _limit_and_tokens(
    ends: str, b: float, noise: float, repetitions: int, random: np.random.Generator
) -> dict[str, Any]:
    true, truth = 1 + EXCESS * 2 ** (-b * DOUBLED), FIRST * (EXCESS / 0.01) ** (1 / b)
    # 2^b − 1 times the excess is gained since half the tokens.
    ideal = math.log2(EXCESS * (2**b - 1) / EPSILON) / b
    late, ratios, covers, limits = [], [], [], []
    for _ in range(repetitions):
        curve = _stopped(true, noise, random)[0] if ends == "rule" else _noisy(true, noise, random)
        curve = [point for point in curve if ends == "rule" or point[0] <= 2 * truth]
        tail = tail_fit(curve)
        count = tokens_to_convergence(curve, epsilon=0.01, tail=tail)
        late.append(math.log2(curve[-1][0] / FIRST) - ideal)
        if count.tokens is not None:
            ratios.append(count.tokens / truth)
        low, high = (count.low, count.high) if count.tokens is not None else (count.lower_bound, math.inf)
        covers.append((low or 0.0) <= truth <= (high or 0.0))
        limits.append(tail is not None and abs(tail.l_inf - 1) <= 1.645 * tail.l_inf_se)
    return {
        "ended by": ends, "b": b, "noise": f"{noise:.2%}", "doublings late": f"{np.median(late):.1f}",
        "T censored": f"{1 - len(ratios) / repetitions:.1%}",
        "T / truth": f"{np.median(ratios):.2f}" if ratios else "–",
        "T covered": f"{np.mean(covers):.0%}", "limit covered": f"{np.mean(limits):.0%}",
    }  # fmt: skip


def _endless(fall: float, noise: float, repetitions: int, random: np.random.Generator) -> dict[str, Any]:
    true, ends, censored = (1 - fall) ** DOUBLED, 0, 0
    for _ in range(repetitions):
        curve, has_ended = _stopped(true, noise, random)
        ends += has_ended
        if has_ended and fall < EPSILON:
            censored += tokens_to_convergence(curve, epsilon=0.01, tail=tail_fit(curve)).tokens is None
    told = f"{censored / ends:.0%}" if ends and fall < EPSILON else "–"
    return {
        "fall per doubling": f"{fall:.1%}", "noise": f"{noise:.2%}", "converged": f"{ends / repetitions:.1%}",
        "T censored": told,
    }  # fmt: skip


def _stopped(true: np.ndarray[Any, Any], noise: float, random: np.random.Generator) -> tuple[Curve, bool]:
    """Return a noisy curve up to where the rule ends it, and whether it does."""
    curve = _noisy(true, noise, random)
    for end in range(1, len(curve)):
        if has_converged(curve[:end], epsilon=EPSILON):
            return curve[:end], True
    return curve, False


def _noisy(true: np.ndarray[Any, Any], noise: float, random: np.random.Generator) -> Curve:
    losses = true * (1 + noise * random.normal(size=len(true)))
    return list(zip(TOKENS, losses.tolist(), strict=True))


if __name__ == "__main__":
    main()
