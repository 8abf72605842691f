"""How long fits of scaling laws take: 500 jobs, 2,000 bootstrap refits (target: 20 s on two cores).

Planted laws: equation 3 of the paper over 10 sizes, 5 values of k and 10 seeds, with errors of 1%. Prints, for each
law, its time, its refits and its exponent beside the planted one; then what a whole `orch fit` of them takes.
Then how often the truth lies in the 90% interval of each coefficient: see `law_coverage`.
"""

import argparse
import json
import os
import time
from typing import Any

import numpy as np

from benchmarks.interleaved_timing import table
from benchmarks.law_coverage import coverage
from orchestrator.curves.point import Point
from orchestrator.scaling.fit.fitting import fit, fit_laws
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.types import JobMeasurement, LawName
from tests.job_measurements import EQUATION_3, measured, point, surface

REFITS = 100
"""Behind each interval of the coverage: its ends are then uncertain by a tenth of its width."""
SIZES, KS, SEEDS = [2**e for e in range(9, 19)], (8, 16, 32, 64, 128), 10


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="500 refits instead of 2,000, few repetitions")
    options.add_argument("--refits", type=int, default=0)
    options.add_argument("--repetitions", type=int, default=0, help="of coverage; 200, or 4 with --short")
    chosen = options.parse_args()
    refits = chosen.refits or (500 if chosen.short else 2000)
    repetitions = chosen.repetitions or (4 if chosen.short else 200)
    rows = planted_jobs()
    print(f"{len(rows)} jobs, {refits} refits, {os.cpu_count()} cores, numpy {np.__version__}\n")
    found = timed_fits(rows, refits)
    print(table(found))
    print(json.dumps(found))
    print(f"\n{repetitions} repetitions of {REFITS} refits\n")
    print(table(coverage(repetitions, refits=REFITS)))


def timed_fits(rows: list[JobMeasurement], refits: int) -> list[dict[str, Any]]:
    """Return what the fit of each law took that the jobs allow, then what all of `orch fit` did."""
    start = time.perf_counter()
    done = fit_laws(list(LAWS), rows, FitOptions(), n_bootstrap=refits, seed=0)
    whole = {"law": "all of orch fit", "fits": len(done.fits), "seconds": time.perf_counter() - start}
    whole |= {"form": "", "refits": sum(one.n_bootstrap for one in done.fits), "exponent": "", "planted": ""}
    allowed = dict.fromkeys(one.law for one in done.fits)  # not those of learning rates: the jobs have one
    return [*(_timed(law, rows, refits) for law in allowed), whole]


def planted_jobs(seeds: int = SEEDS) -> list[JobMeasurement]:
    """Return jobs of the planted laws, so many seeds of each size and k."""
    random = np.random.default_rng(0)
    return [_job(n, k, seed, random) for n in SIZES for k in KS for seed in range(seeds)]


def _job(n: int, k: int, seed: int, random: np.random.Generator) -> JobMeasurement:
    fvu = surface(n, k) * float(np.exp(0.01 * random.normal()))
    tokens = 2e4 * n**0.6
    points = tuple(_point(n, fvu, tokens, share) for share in np.geomspace(1 / 64, 2, 29))
    return measured(n, k, fvu, seed=seed, tokens=tokens * float(np.exp(0.1 * random.normal())), curve=points)


def _point(n: int, fvu: float, tokens: float, share: float) -> Point:
    return point(int(tokens * share), fvu * (1 + 0.01 / share), 12.0 * n * 768 * tokens * share)


def _timed(law: LawName, rows: list[JobMeasurement], refits: int) -> dict[str, Any]:
    start = time.perf_counter()
    fits = fit(law, rows, n_bootstrap=refits)
    seconds = time.perf_counter() - start
    last = fits[-1]
    value = last.coefficients[LAWS[law].exponent]
    return {
        "law": law, "fits": len(fits), "seconds": seconds, "form": last.form,
        "refits": sum(one.n_bootstrap for one in fits),
        "exponent": f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f}) {last.group}", "planted": _planted(law),
    }  # fmt: skip


def _planted(law: LawName) -> str:
    slope = EQUATION_3["beta_n"] + EQUATION_3["gamma"] * float(np.log(KS[-1]))
    return {"ln": f"{slope:.4f}", "lnk": f"{EQUATION_3['gamma']:.4f}", "tn": "0.6"}.get(law, "")


if __name__ == "__main__":
    main()
