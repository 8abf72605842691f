"""One command for a machine with a GPU, torch and Triton: does every GPU path work there, and how fast is it?

Runs the tests of the kernels and the compiled step, then times a step against the bare bfloat16 product, sparsify's
step, capture, eight SAEs on one stream, and one job through a worker: killed, resumed, compared with the CPU's curve.
Every part is a process with a time limit of its own; what fails is printed and the rest goes on. The results are
written to gpu_check.json in `--out` after each part. Needs no network: `make wheels` fills a folder with what such a
machine lacks. `--rehearse` runs everything at tiny sizes on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    name: str
    limit_seconds: float


BESIDE = tuple(Part(name, 170) for name in ("warm0", "warm1", "warm2", "job"))
"""Not timed, so all at once, and beside the tests."""
ALONE = (
    Part("step1", 60), Part("step0", 60), Part("peers", 60), Part("capture", 80), Part("step2", 60),
    Part("ceilings", 30), Part("decoder", 40),
)  # fmt: skip
TESTS = 170.0


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
    """Run what was asked for: what is not timed all at once, the rest alone."""
    wanted = set(given.only.split(",")) if given.only else None
    chosen = [part for part in BESIDE if wanted is None or part.name in wanted]
    started = [(part, run.start(part.name)) for part in chosen]
    tests = run.start_tests() if wanted is None or "tests" in wanted else None
    for part, process in started:
        run.end(part.name, process, limit=part.limit_seconds)
    if tests is not None:
        run.end_tests(tests)
    for part in ALONE:
        if wanted is None or part.name in wanted:
            run.end(part.name, run.start(part.name), limit=part.limit_seconds)
    print(run.summary())


def install(wheels: Path, folder: Path) -> None:
    """Unpack wheels, and let every process that is started from here find them."""
    how = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target", str(folder.resolve())]
    subprocess.run([sys.executable, "-m", "pip", "install", *how, *map(str, wheels.glob("*.whl"))], check=True)
    os.environ["PYTHONPATH"] = str(folder.resolve())


class Run:
    """One check: what was found so far, in memory and on disk."""

    def __init__(self, out: Path, work: Path, *, rehearse: bool, deadline: float) -> None:
        """Begin; in `work` compiled code is kept, so that the timed parts find it."""
        self.found: dict[str, Any] = {}
        self._out, self._work, self._rehearse, self._deadline = out, work, rehearse, deadline
        self._started = time.monotonic()

    def start(self, name: str) -> "subprocess.Popen[str]":
        folder = self._work / ("warm" if name.startswith("warm") else name if name in ("job", "capture") else "timed")
        command = [sys.executable, "-m", "benchmarks.gpu_parts", name, "--folder", str(folder)]
        command += ["--device", "cpu", "--rehearse"] if self._rehearse else []
        return self._popen(command, name)

    def start_tests(self) -> "subprocess.Popen[str]":
        what = ["tests/unit/worker/sae/test_topk.py"] if self._rehearse else ["tests/gpu", "tests/compiled"]
        parallel = [] if self._rehearse else ["-n", "6", "--dist", "load"]
        return self._popen(
            [sys.executable, "-m", "pytest", "-p", "no:benchmark", "-q", "--no-header", "--tb=short", *parallel, *what],
            "tests",
        )

    def _popen(self, command: list[str], name: str) -> "subprocess.Popen[str]":
        caches = {
            "TORCHINDUCTOR_CACHE_DIR": str(self._work / "inductor"), "TRITON_CACHE_DIR": str(self._work / "triton"),
            "TORCHINDUCTOR_COMPILE_THREADS": "4",
        }  # fmt: skip
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environ = {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        errors = (self._out / f"{name}.err").open("w")
        return subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )

    def end(self, name: str, process: "subprocess.Popen[str]", *, limit: float) -> None:
        """Wait for a part and keep what it found."""
        out = self._wait(process, limit)
        try:
            self.found[name] = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            said = (self._out / f"{name}.err").read_text()[-1500:]
            self.found[name] = {"error": f"exit status {process.returncode}", "said": said}
        self._keep(name)

    def end_tests(self, process: "subprocess.Popen[str]") -> None:
        out = self._wait(process, TESTS)
        lines = out.splitlines()
        self.found["tests"] = {
            "counts": lines[-1] if lines else f"exit status {process.returncode}",
            "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:20],
        }
        (self._out / "tests.txt").write_text(out)
        self._keep("tests")

    def _wait(self, process: "subprocess.Popen[str]", limit: float) -> str:
        try:
            left = max(1.0, min(limit, self._deadline - time.monotonic()))
            return process.communicate(timeout=left)[0] or ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return process.communicate()[0] or ""

    def _keep(self, name: str) -> None:
        (self._out / "gpu_check.json").write_text(json.dumps(self.found, indent=1))
        print(f"{time.monotonic() - self._started:6.1f} s  {name}: {_short(self.found[name])}", flush=True)

    def summary(self) -> str:
        """Return a row of Markdown for each step."""
        heads = "| D | n | k | B | product ms | step ms | step/product | 10% dead | TFLOP/s | tokens/s | syncs | way |"
        rows = [heads, "|" + "---|" * (heads.count("|") - 1)]
        for part in ("step0", "step1", "step2"):
            at = self.found.get(part, {})
            if "ms" in at:
                values = [
                    at["d_model"],
                    at["n_latents"],
                    at["k"],
                    at["batch_tokens"],
                    at["ms"]["product"],
                    at["ms"]["step"],
                ]
                values += [
                    at["step/product"],
                    at["dead/product"],
                    at["product TFLOP/s"],
                    at["tokens/s"],
                    at["syncs"],
                    at["way"],
                ]
                rows.append("| " + " | ".join(f"{v:,.2f}" if isinstance(v, float) else str(v) for v in values) + " |")
        text = "\n".join(rows)
        (self._out / "gpu_check.md").write_text(text + "\n")
        return text


def _short(found: dict[str, Any]) -> str:
    text = json.dumps(found)
    return text if len(text) < 1600 else text[:1600] + " ..."


if __name__ == "__main__":
    main()
