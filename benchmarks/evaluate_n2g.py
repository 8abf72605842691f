"""N2G of latents of the shipped subject: seconds, and the model's tokens per second against bare passes, in one run.

An SAE (topk, 2,048 latents, k 16, block 3) is trained for some steps; then everything that `orch evaluate` does for the
family `n2g` is timed: reading the text that patterns are built of, the search, the prediction of the held-out text.
bare: the same model read at the same place in contexts of 128 tokens, nothing else; before and after, the mean.
Prints a table and a line of JSON. Target: 100 latents in under 120 s on two cores.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.evaluation.n2g import N2gOptions
from orchestrator.config.job import JobConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from worker.activations.forward import CPU_TOKENS
from worker.activations.heldout_split import Contexts
from worker.activations.stream import shared_stream
from worker.data.token_file import TokenFile, pack
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.metric import Measured, SubjectSae
from worker.evaluation.n2g import measure
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae
from worker.sae.native.kernels import use
from worker.sae.train_state import TrainState, train_step
from worker.subject.model import Subject, load, read
from worker.subject.model_files import quiet

TARGET_SECONDS = 120


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--latents", type=int, default=100)
    options.add_argument("--steps", type=int, default=256, help="training steps of 2,048 tokens")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet()
    config = parse({"subject": {"layer": 3}, "sae": {"n_latents": 2048, "k": 16}})
    subject = load(config.subject)
    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder) / "kernels")  # as in an evaluation's process
        tokens = pack(config.data, subject.tokenizer, Path(folder))
        sae = trained(subject, tokens, config, steps=chosen.steps)
        before = bare_speed(subject, tokens)
        found = timed(context_of(subject, tokens, config, Path(folder)), sae, chosen.latents)
        bare = (before + bare_speed(subject, tokens)) / 2
    found |= {"bare_tokens_per_second": bare, "of_bare": found["tokens_per_second"] / bare}
    print(
        f"{chosen.threads} threads, torch {torch.__version__}; {chosen.latents} latents, target < {TARGET_SECONDS} s\n"
    )
    for name, value in found.items():
        print(f"{name:>26}  {value:>12,.3f}")
    print(json.dumps(found))


def trained(subject: Subject, tokens: TokenFile, config: JobConfig, *, steps: int) -> InferenceSae:
    """Return an SAE after some steps: enough that its latents are active on words."""
    batches = shared_stream([subject], tokens, [config])
    first = next(batches)[0]
    state = TrainState.fresh(config, first.float())
    for _ in range(steps):
        train_step(state, next(batches)[0].float(), config)
    facts = SaeFacts(
        selection="topk", d_model=subject.d_model, n_latents=2048, k=16, normalize="unit", subtracts_bias=True,
        dtype="float32",
    )  # fmt: skip
    return InferenceSae.from_trained(state.best(), facts)


def context_of(subject: Subject, tokens: TokenFile, config: JobConfig, folder: Path) -> EvaluationContext:
    asked = EvaluationConfig(
        plan=EvaluationPlan(),
        sae=EvaluatedSaeRef(id=1),
        subject=config.subject,
        data=config.data,
        heldout_tokens=config.training.heldout_tokens,
    )
    text = HeldoutText(tokens, Contexts.of(tokens, config), config.data.source)
    store = SharedStore(folder / "store")
    return EvaluationContext(asked, torch.device("cpu"), store, lambda phase, share: None, subject, text)


def timed(context: EvaluationContext, sae: InferenceSae, n_latents: int) -> dict[str, float]:
    """Return the seconds of the whole family, and the tokens that the model read for it, padding among them."""
    started = time.perf_counter()
    (found,) = measure([SubjectSae(1, "1", sae)], context, N2gOptions(latents=n_latents))
    seconds = time.perf_counter() - started
    assert isinstance(found, Measured), found
    f1 = next(score.value for score in found.scores if score.metric == "n2g_f1")
    _, text = context.model()
    once = N2gOptions().build_tokens + text.heldout.ids.numel()
    tokens = once + found.files["n2g.json"]["tokens_run"]
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds, "f1": f1}


def bare_speed(subject: Subject, tokens: TokenFile, *, passes: int = 12) -> float:
    """Return the tokens per second of forward passes up to the hook point."""
    rows = CPU_TOKENS // tokens.context_length
    ids = torch.from_numpy(tokens.read()[:rows].astype("int64"))
    read([subject], ids)
    started = time.perf_counter()
    for _ in range(passes):
        read([subject], ids)
    return passes * ids.numel() / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
