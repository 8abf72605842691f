"""Peak memory of a training step, beyond weights, moments, average and gradients, against the pre-activations' matrix.

Floor: 20 bytes per parameter stay (W, m, v, average, gradient), and one tile of pre-activations is used again from step
to step: half of n_tokens × n_latents float32 numbers, or as many tokens of it as fit in 256 MiB. What a dense trainer
keeps is five to ten such matrices. Each row is a process of its own; the peak is the kernel's (Linux).
Prints a table and a line of JSON. `--short` measures the first two rows.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROWS = ((768, 16_384, 32, 2048), (768, 16_384, 32, 8192), (256, 4096, 32, 2048), (768, 65_536, 32, 2048))
"""d_model, n_latents, k, batch_tokens."""
STATE_BYTES = 20


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true")
    options.add_argument("--row", help="measure this one here: d_model,n_latents,k,batch_tokens")
    chosen = options.parse_args()
    if chosen.row:
        print(json.dumps(measure(*map(int, chosen.row.split(",")))))
        return
    from benchmarks.interleaved_timing import table

    rows = [_apart(row) for row in (ROWS[:2] if chosen.short else ROWS)]
    print(table(rows))
    print(json.dumps(rows))


def measure(d_model: int, n_latents: int, k: int, batch_tokens: int) -> dict[str, Any]:
    """Return the peak of this process over three steps, less what it held before there was a TrainState."""
    import torch

    from orchestrator.config.validation import parse
    from worker.sae.train_state import TrainState, train_step

    training = {"batch_tokens": batch_tokens, "shuffle_tokens": batch_tokens, "max_tokens": 2**41}
    config = parse({"sae": {"n_latents": n_latents, "k": k}, "training": training})
    x = torch.nn.functional.normalize(torch.randn(batch_tokens, d_model))
    _load_code()
    torch.mm(x, torch.zeros(d_model, n_latents))  # nor are the libraries' own buffers the step's
    before = _status("VmRSS")
    state = TrainState.fresh(config, x)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: initialisation is not a step
    for _ in range(3):
        train_step(state, x, config)
    peak = _status("VmHWM") - before
    state_bytes = STATE_BYTES * sum(value.numel() for value in state.model.parameters())
    matrix = 4 * batch_tokens * n_latents
    return {
        "D": d_model, "n": n_latents, "k": k, "B": batch_tokens, "state MB": state_bytes / 1e6, "B×n MB": matrix / 1e6,
        "beyond MB": (peak - state_bytes) / 1e6,
        "beyond/B×n": (peak - state_bytes) / matrix,
    }  # fmt: skip


def _load_code() -> None:
    """Take a tiny step: the pages of the program itself are not the step's."""
    import torch

    from orchestrator.config.validation import parse
    from worker.sae.train_state import TrainState, train_step

    x = torch.nn.functional.normalize(torch.randn(64, 16))
    config = parse({"sae": {"n_latents": 8192, "k": 8}, "training": {"batch_tokens": 64, "shuffle_tokens": 64}})
    train_step(TrainState.fresh(config, x), x, config)


def _apart(row: tuple[int, ...]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--row", ",".join(map(str, row))]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "0"}  # huge pages would be counted whole
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _status(key: str) -> int:
    """Return a line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
