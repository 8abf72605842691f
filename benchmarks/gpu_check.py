"""One command for a machine with a GPU, torch and Triton: does every GPU path work there, and how fast is it?

Runs the tests of the kernels and the compiled step, then times a step against the bare bfloat16 product, sparsify's
step, float8 beside bfloat16, capture, eight SAEs on one stream, and one job through a worker: killed, resumed,
compared with the CPU's curve. Every part is a process with a time limit of its own; what fails is printed and the
rest goes on. The results are written to gpu_check.json in `--out` after each part. Needs no network: `make wheels`
fills a folder with what such a machine lacks. `--rehearse` runs everything at tiny sizes on a CPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


LIMITS = {
    "tests": 170, "warm0": 170, "warm1": 170, "warm2": 170, "job": 170,
    "step1": 60, "step0": 60, "peers": 60, "capture": 80, "step2": 60, "ceilings": 30, "decoder": 40, "float8": 90,
}  # fmt: skip
"""Seconds that each part may take."""
BESIDE = ("tests", "warm0", "warm1", "warm2", "job")
"""Not timed, so all at once; the rest one after another."""


class Started(NamedTuple):
    name: str
    process: "subprocess.Popen[str]"
    at: float
    """By the monotonic clock."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("gpu_check"))
    options.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU")
    options.add_argument("--seconds", type=float, default=480, help="the whole of it takes no longer")
    options.add_argument("--wheels", type=Path, help="install these first, for this run alone")
    options.add_argument("--only", default="", help="names of parts, with commas between them")
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.wheels:
        install(given.wheels, given.out / "site")
    with tempfile.TemporaryDirectory() as work:
        check(Run(given.out, Path(work), rehearse=given.rehearse, deadline=time.monotonic() + given.seconds), given)


def check(run: "Run", given: argparse.Namespace) -> None:
    """Run what was asked for."""
    wanted = set(given.only.split(",")) if given.only else set(LIMITS)
    beside = [run.start(name) for name in BESIDE if name in wanted]
    try:
        for one in beside:
            run.end(one)
        for name in LIMITS:
            if name in wanted and name not in BESIDE:
                run.end(run.start(name))
    finally:
        run.kill()
    print(run.summary())


def install(wheels: Path, folder: Path) -> None:
    """Unpack wheels, and let every process that is started from here find them."""
    how = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(folder.resolve())]
    subprocess.run([sys.executable, "-m", "pip", "install", *how, *map(str, wheels.glob("*.whl"))], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder.resolve()), os.environ.get("PYTHONPATH"))))


class Run:
    """One check: what was found so far, in memory and on disk."""

    def __init__(self, out: Path, work: Path, *, rehearse: bool, deadline: float) -> None:
        """Begin; in `work` compiled code is kept, so that the timed parts find it."""
        self.found: dict[str, Any] = {}
        self._out, self._work, self._rehearse, self._deadline = out, work, rehearse, deadline
        self._began, self._running = time.monotonic(), list[Started]()

    def start(self, name: str) -> Started:
        """Start a part, in a process group of its own."""
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(self._work / "inductor"), "TRITON_CACHE_DIR": str(self._work / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
        }  # fmt: skip
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environ = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        command = [sys.executable, "-m", *(self._tests() if name == "tests" else self._part(name))]
        with (self._out / f"{name}.err").open("w") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        self._running.append(Started(name, process, time.monotonic()))
        return self._running[-1]

    def end(self, one: Started) -> None:
        """Wait for a part, to its limit, and keep the last of what it found; of one that failed, what it said too."""
        left = min(one.at + LIMITS[one.name], self._deadline) - time.monotonic()
        try:
            out, _ = one.process.communicate(timeout=max(1.0, left))
        except subprocess.TimeoutExpired:
            os.killpg(one.process.pid, signal.SIGKILL)
            out, _ = one.process.communicate()
        self._running.remove(one)
        lines = out.splitlines()
        if one.name == "tests":
            (self._out / "tests.txt").write_text(out)
            found: dict[str, Any] = {"counts": lines[-1] if lines else "nothing was printed"}
            found["failed"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))][:20]
        else:
            told = [line for line in lines if line.startswith("{") and line.endswith("}")]
            found = json.loads(told[-1]) if told else {}
        if one.process.returncode:
            said = (self._out / f"{one.name}.err").read_text()[-1500:]
            found |= {"error": f"exit status {one.process.returncode}", "said": said}
        self.found[one.name] = found
        self._keep(one.name)

    def kill(self) -> None:
        """Leave no process behind: where this one is interrupted, parts still run."""
        for one in self._running:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.communicate()

    def _part(self, name: str) -> list[str]:
        folder = self._work / ("warm" if name.startswith("warm") else name if name in ("job", "capture") else "timed")
        where = ["--device", "cpu", "--rehearse"] if self._rehearse else []
        return ["benchmarks.gpu_parts", name, "--folder", str(folder), *where]

    def _tests(self) -> list[str]:
        what = ["tests/unit/worker/sae/test_topk.py"] if self._rehearse else ["tests/gpu", "tests/compiled"]
        parallel = [] if self._rehearse else ["-n", "6", "--dist", "load"]
        return ["pytest", "-p", "no:benchmark", "-q", "--no-header", "--tb=short", *parallel, *what]

    def _keep(self, name: str) -> None:
        (self._out / "gpu_check.json").write_text(json.dumps(self.found, indent=1))
        print(f"{time.monotonic() - self._began:6.1f} s  {name}: {_short(self.found[name])}", flush=True)

    def summary(self) -> str:
        """Return a row of Markdown for each step."""
        columns: dict[str, Callable[[dict[str, Any]], Any]] = {
            **{key: itemgetter(key) for key in ("d_model", "n_latents", "k", "batch_tokens")},
            "product ms": lambda at: at["ms"]["product"], "step ms": lambda at: at["ms"]["step"],
            **{key: itemgetter(key) for key in ("step/product", "dead/product", "product TFLOP/s", "tokens/s")},
            "host syncs": itemgetter("syncs"), "way": itemgetter("way"),
        }  # fmt: skip
        lines = [[*columns], ["---"] * len(columns)]
        for at in (self.found.get(part, {}) for part in ("step0", "step1", "step2")):
            if "ms" in at:
                values = [read(at) for read in columns.values()]
                lines.append([f"{value:,.2f}" if isinstance(value, float) else str(value) for value in values])
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        (self._out / "gpu_check.md").write_text(text + "\n")
        return text


def _short(found: dict[str, Any]) -> str:
    text = json.dumps(found)
    return text if len(text) < 1600 else text[:1600] + " ..."


if __name__ == "__main__":
    main()
