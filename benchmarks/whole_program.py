"""A sweep of SAEs from nothing to saved files: ours beside the training programs of other libraries.

Each program is a process of its own that is given a model's folder and a text file: imports, tokenising, capture,
training, saving (and, of ours, the queue, checkpoints, the curve, MLflow and each SAE's ΔCE) all count. Same machine,
same number of threads, the order of the programs turned round in every other round. Printed for each: wall seconds
(median over rounds), the most memory its processes had resident together, the held-out fvu of raw activations of each
SAE, measured here for all alike on text that none read, and its wall seconds ÷ ours. Programs that cannot be imported
are left out. By default eight SAEs of the model that ships; with `--gpt2-small` one of 16,384 latents of a model of
GPT-2 small's size, random weights. `--short`: an eighth of the tokens.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor

from benchmarks.capture import gpt2_small
from benchmarks.interleaved_timing import table
from benchmarks.peer_programs import PROGRAMS, Order
from orchestrator.config.job import SHIPPED_SUBJECT, SubjectConfig
from worker.data.standard_library import standard_library_documents
from worker.formats import registry
from worker.subject.model import Subject, capture, load
from worker.subject.model_files import locate

MODULES = {"sparsify": "sparsify", "dictionary_learning": "dictionary_learning", "SAELens": "sae_lens"}
CHARACTERS_PER_TOKEN = 5.0
"""That are written for each training token: more than the shipped tokenizer has of this text, so that none runs out."""
HELDOUT_TOKENS, MOST_SHUFFLED = 16_384, 65_536
SECONDS_BETWEEN_LOOKS = 0.2


def main() -> None:
    """Run every program, round by round."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true")
    options.add_argument("--model", help="folder of a GPT-2-like model; by default the one that ships")
    options.add_argument("--gpt2-small", action="store_true", help="a model of that size, made here, and its sizes")
    options.add_argument("--layer", type=int)
    options.add_argument("--latents", type=int, nargs="+")
    options.add_argument("--k", type=int, nargs="+")
    options.add_argument("--tokens", type=int, default=524_288)
    options.add_argument("--batch-tokens", type=int)
    options.add_argument("--without-evaluation", action="store_true", help="ours measures no ΔCE")
    options.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--only", nargs="+", default=["ours", *PROGRAMS])
    given = _filled(options.parse_args())
    names = [name for name in given.only if name == "ours" or importlib.util.find_spec(MODULES[name])]
    with tempfile.TemporaryDirectory() as folder:
        if given.gpt2_small:
            given.model = gpt2_small(Path(folder) / "gpt2-small")
        order, subject, heldout = _prepared(given, Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in names}
        rows: dict[str, dict[str, object]] = {}
        for number in range(given.rounds):
            for name in names[:: -1 if number % 2 else 1]:
                out = Path(folder) / "out"
                wall, resident = _run(name, order, Path(folder), evaluates=not given.without_evaluation)
                seconds[name].append(wall)
                rows[name] = {"program": name, "MB": resident / 1e6, **_fvus(order, name, out, heldout)}
                print(f"{name}: {wall:.0f} s", flush=True)
                shutil.rmtree(out)
    found = {name: statistics.median(walls) for name, walls in seconds.items()}
    told = [
        {"program": name, "seconds": found[name], "÷ ours": found[name] / found.get("ours", float("nan")), **row}
        for name, row in rows.items()
    ]
    print(f"\n{len(order.sizes)} SAEs, {order.tokens:,} tokens each in batches of {order.batch_tokens}, d_model "
          f"{subject.d_model}, {order.threads} threads, torch {torch.__version__}, {platform.processor()}")  # fmt: skip
    print(f"{table(told)}\n{json.dumps(told)}")


def _filled(given: argparse.Namespace) -> argparse.Namespace:
    """Return the options with the sizes that were left out: those of the sweep, or of the one large SAE."""
    sweep = {"layer": 3, "latents": [64, 128, 256, 512], "k": [4, 8], "batch_tokens": 256}
    large = {"layer": 6, "latents": [16_384], "k": [32], "batch_tokens": 2_048}
    sizes = large if given.gpt2_small else sweep
    return argparse.Namespace(
        **vars(given) | {name: size if vars(given)[name] is None else vars(given)[name] for name, size in sizes.items()}
    )


def _prepared(given: argparse.Namespace, folder: Path) -> tuple[Order, Subject, Tensor]:
    """Write the texts; return what each program is to do, the subject, and the held-out vectors."""
    tokens = given.tokens // 8 if given.short else given.tokens
    config = SubjectConfig(model=given.model or SHIPPED_SUBJECT, layer=given.layer)
    subject = load(config)
    documents = standard_library_documents()
    heldout = _written(folder / "heldout.jsonl", documents, 2 * HELDOUT_TOKENS)
    _written(folder / "text.jsonl", documents, tokens)
    order = Order(
        model=str(locate(config)), text=str(folder / "text.jsonl"), layer=given.layer, d_model=subject.d_model,
        sizes=[(n, k) for n in given.latents for k in given.k], tokens=tokens, context=128,
        batch_tokens=given.batch_tokens, threads=given.threads, out=str(folder / "out"),
    )  # fmt: skip
    ids = subject.tokenizer(heldout)["input_ids"][: HELDOUT_TOKENS // order.context * order.context]
    vectors = [capture(subject, part) for part in torch.split(torch.tensor(ids).view(-1, order.context), 16)]
    return order, subject, torch.cat(vectors).flatten(0, 1)


def _written(path: Path, documents: Iterator[str], tokens: int) -> str:
    """Write documents of about so many tokens, one a line; return their text."""
    written: list[str] = []
    while sum(map(len, written)) < CHARACTERS_PER_TOKEN * tokens:
        written.append(next(documents))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in written))
    return "".join(written)


def _run(name: str, order: Order, folder: Path, *, evaluates: bool) -> tuple[float, float]:
    """Run a program; return its wall seconds, and the most bytes its processes had resident together.

    Raises:
        RuntimeError: it failed; the message is the end of what it printed.
    """
    if name == "ours":
        (folder / "sweep.yaml").write_text(_sweep(order, evaluates=evaluates))
        program = [sys.executable, "-m", "orchestrator"]
        commands = [
            [*program, "enqueue", str(folder / "sweep.yaml")],
            [*program, "worker", "--until-empty", "--threads", str(order.threads)],
        ]
    else:
        (folder / "order.json").write_text(json.dumps(order._asdict()))
        commands = [
            [sys.executable, "-W", "ignore", "-m", "benchmarks.peer_programs", name, str(folder / "order.json")]
        ]
    quiet = {"ORCH_HOME": order.out, "HF_HUB_OFFLINE": "1", "HF_HOME": order.out + "/hub", "WANDB_MODE": "disabled"}
    started, most = time.perf_counter(), 0.0
    for command in commands:
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(command, env=os.environ | quiet, stdout=log, stderr=log)
            while child.poll() is None:
                most = max(most, _resident(child.pid))
                time.sleep(SECONDS_BETWEEN_LOOKS)
        if child.returncode:
            raise RuntimeError(f"{name}: exit status {child.returncode}\n{_end_of_log(folder)}")
    return time.perf_counter() - started, most


def _sweep(order: Order, *, evaluates: bool) -> str:
    sizes = {"n_latents": sorted({n for n, _ in order.sizes}), "k": sorted({k for _, k in order.sizes})}
    return json.dumps(
        {
            "version": 1,
            "name": "whole-program",
            "overrides": {
                "subject.model": order.model, "subject.layer": order.layer, "data.source": order.text,
                "data.context_length": order.context, "training.batch_tokens": order.batch_tokens,
                "training.shuffle_tokens": _window(order), "training.max_tokens": order.tokens,
                "stop.rule": "max_tokens",
            },
            "sweep": [{"grid": {f"sae.{name}": values for name, values in sizes.items()}}],
            **({"evaluate": ["downstream"]} if evaluates else {}),
        }
    )  # fmt: skip


def _window(order: Order) -> int:
    """Return the tokens among which ours shuffles: whole batches, and no more than are trained on."""
    return max(1, min(128, MOST_SHUFFLED // order.batch_tokens, order.steps)) * order.batch_tokens


def _resident(pid: int) -> float:
    """Return the bytes that a process and its children have resident, what they share counted once for each."""
    try:
        process = psutil.Process(pid)
        return float(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
    except psutil.NoSuchProcess:
        return 0.0


def _fvus(order: Order, name: str, out: Path, heldout: Tensor) -> dict[str, object]:
    """Return the held-out fvu of raw activations of each SAE that was saved."""
    spread = (heldout - heldout.mean(0)).square().sum(dtype=torch.float64)
    found: dict[str, object] = {}
    for number, (n_latents, k) in enumerate(order.sizes):
        sae = registry.read(_saved(name, out, number)).sae
        if (sae.facts.n_latents, sae.facts.k) != (n_latents, k):
            raise RuntimeError(
                f"{name} saved {sae.facts.n_latents} latents, k {sae.facts.k}, in place of {n_latents}, {k}"
            )
        error = sum((x - sae(x)).square().sum(dtype=torch.float64) for x in torch.split(heldout, 2048))
        found[f"fvu {n_latents}/{k}"] = round(float(error / spread), 4)
    return found


def _saved(name: str, out: Path, number: int) -> Path:
    """Return where a program saved an SAE, by its number in the order."""
    within = {
        "ours": f"artifacts/{number + 1}/*/final", "sparsify": f"{number}/h.*",
        "dictionary_learning": f"trainer_{number}", "SAELens": f"{number}",
    }  # fmt: skip
    folders = [*out.glob(within[name])]
    if len(folders) != 1:
        raise RuntimeError(f"{name} saved {len(folders)} SAEs in place of number {number}:\n{_end_of_log(out.parent)}")
    return folders[0]


def _end_of_log(folder: Path) -> str:
    return (folder / "log").read_text()[-2000:]


if __name__ == "__main__":
    main()
