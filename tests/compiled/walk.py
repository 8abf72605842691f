"""Train with the compiled step and without, and print how far they are apart: run in a process of its own.

The checks of shapes that pytest puts into the SAE's modules break compilation. Each argument is one walk.
"""

import copy
import json
import sys
from typing import Any

import torch

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from worker.sae.compiled.compiled_step import CompiledStep
from worker.sae.train_state import TrainState, train_step

D_MODEL, BATCH, N_STEPS = 15, 32, 40


def many() -> dict[str, Any]:
    """Train jobs of other sizes side by side until their latents have died: more graphs than torch has by default."""
    x = torch.randn(N_STEPS * BATCH, D_MODEL, generator=torch.Generator().manual_seed(0))
    failed = []
    for n_latents in range(90, 96):
        config = _config({"n_latents": n_latents})
        trainee = TrainState.fresh(config, x)
        step = CompiledStep(config, trainee, say=print, backend="eager")
        for batch in torch.split(x[: 8 * BATCH], BATCH):
            step(trainee, batch, config)
        assert trainee.aux_tokens > 0
        failed.append(step.failed)
    return {"failed": failed}


def main() -> None:
    torch.set_num_threads(1)
    for what in sys.argv[1:]:
        print(json.dumps(many() if what == "many" else walk(json.loads(what))))
        torch._dynamo.reset()


def walk(given: dict[str, Any]) -> dict[str, Any]:
    """Train with both, and from the middle on with a copy that was saved and restored."""
    device, n_dead, n_layers = given.pop("device", "cpu"), given.pop("n_dead", 30), given.pop("n_layers", 1)
    config = _config(given, given.pop("encode_dtype", "float32"))
    x = torch.randn(n_layers, N_STEPS * BATCH, D_MODEL, generator=torch.Generator().manual_seed(0))
    x = (x * torch.arange(1, n_layers + 1).view(-1, 1, 1)).to(device)  # each layer has a variance of its own
    plain = TrainState.fresh(config, x.flatten(0, 1), n_layers=n_layers)
    with torch.no_grad():
        plain.model.b_enc[:n_dead] -= 10.0 * n_layers  # they do not fire
    compiled = copy.deepcopy(plain)
    said: list[str] = []
    step = CompiledStep(config, plain, say=said.append)
    step.compile_first_graph(compiled)
    untouched = torch.equal(compiled.model.W_enc, plain.model.W_enc) and compiled.tokens_seen == 0
    resumed: TrainState | None = None
    for number, batch in enumerate(part.flatten(0, 1) for part in torch.split(x, BATCH, dim=1)):
        if number == N_STEPS // 2 + 3:  # a process that was killed here, between two looks for dead latents
            tensors = {name: value.clone() for name, value in compiled.tensors().items()}
            resumed = TrainState.restored(config, tensors, compiled.values(), device=device)
            other = CompiledStep(config, resumed, say=said.append)
            other.failed = step.failed  # where nothing can be compiled, not to find that out takes seconds
        step(compiled, batch, config)
        train_step(plain, batch, config)
        if resumed is not None:
            other(resumed, batch, config)
    assert resumed is not None
    kept = zip(compiled.tensors().values(), resumed.tensors().values(), strict=True)
    pairs = zip(compiled.tensors().items(), plain.tensors().values(), strict=True)
    apart = {name: float((one.double() - other.double()).abs().max()) for (name, one), other in pairs}
    return {
        "failed": step.failed,
        "said": said,
        "untouched": untouched,
        "resumed_is_the_same": all(torch.equal(one, other) for one, other in kept)
        and compiled.values() == resumed.values(),
        "replayed": sorted(graph.room for graph in step._replays or {}),
        "apart": apart,
        "aux_loss": float(plain.sums[1]),
        "aux_tokens": [compiled.aux_tokens, plain.aux_tokens],
        "tokens_seen": [compiled.tokens_seen, plain.tokens_seen],
    }


def _config(sae: dict[str, object], encode_dtype: str = "float32") -> JobConfig:
    training = {
        "encode_dtype": encode_dtype,
        "batch_tokens": BATCH,
        "shuffle_tokens": BATCH,
        "dead_after_tokens": 5 * BATCH,
        "max_tokens": 2**20,
    }
    return parse(
        {
            "sae": {"n_latents": 97, "k": 4, "k_aux": 8, **sae},
            "optimizer": {"lr": 1e-3, "clip_norm": 0.5, "warmup_tokens": 10 * BATCH},
            "training": training,
        }
    )


if __name__ == "__main__":
    main()
