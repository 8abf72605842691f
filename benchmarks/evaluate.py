"""Evaluation against its floors, in one interleaved run: seconds, medians. Prints a Markdown table.

one more SAE: the family `downstream` of one SAE, its clean pass on disk, from opening the store to the last interval.
Floor: the blocks behind the hook and the head, restarted from memory, and one encode and decode, of the same tokens.
together: eight SAEs in one pass. Against: each by itself, with a clean pass of its own; and on a shared clean pass.
set-up: what belongs to model and text alone; of the first evaluation computed and stored, of the second read.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import torch

from benchmarks.interleaved_timing import interleaved
from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.job import JobConfig
from orchestrator.config.sae_facts import InputNormalization, SaeFacts
from orchestrator.config.validation import parse
from worker.activations.heldout_split import Contexts
from worker.data import token_file
from worker.evaluation.clean_pass import CleanBatch, CleanPass
from worker.evaluation.context import EvaluationContext
from worker.evaluation.downstream import measure
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.metric import SubjectSae
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae, decode_sparse
from worker.sae.native.kernels import use
from worker.subject.model import Subject, load
from worker.subject.model_files import quiet

N_SAES = 8


@dataclass(frozen=True)
class Place:
    """A model at one place, and a text."""

    config: JobConfig
    subject: Subject
    text: HeldoutText

    @classmethod
    def of(cls, folder: Path, *, model: str | None, tokens: int) -> "Place":
        """Load a model, and pack enough of the standard library's source; special tokens count like others."""
        subject = {} if model is None else {"subject": {"model": model}}
        data = {"max_tokens": 8 * tokens, "special_tokens": "train"}
        config = parse(subject | {"data": data, "training": {"heldout_tokens": tokens}})
        loaded = load(config.subject)
        packed = token_file.pack(config.data, loaded.tokenizer, folder)
        return cls(config, loaded, HeldoutText(packed, Contexts.of(packed, config), config.data.source))

    def context(self, store: Path) -> EvaluationContext:
        """Return what a new evaluation process would hold, with a folder for what is computed once."""
        config = EvaluationConfig(
            plan=EvaluationPlan(),
            sae=EvaluatedSaeRef(id=1),
            subject=self.config.subject,
            data=self.config.data,
            heldout_tokens=self.config.training.heldout_tokens,
        )
        told = lambda _phase, _share: None  # noqa: E731
        return EvaluationContext(config, self.subject.device, SharedStore(store), told, self.subject, self.text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="fewer rounds: under a minute on two cores")
    options.add_argument("--model", help="another subject than the one that ships: a folder")
    options.add_argument("--tokens", type=int, default=16_384)
    options.add_argument("--latents", type=int, default=1024)
    options.add_argument("--k", type=int, default=32)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder) / "kernels")  # as in an evaluation's process
        place = Place.of(Path(folder) / "tokens", model=chosen.model, tokens=chosen.tokens)
        saes = [made_sae(place.subject.d_model, chosen.latents, chosen.k, seed=seed) for seed in range(N_SAES)]
        rows = [*one_more(place, saes[0], Path(folder), rounds=5 if chosen.short else 15)]
        rows += together(place, saes, Path(folder), rounds=1 if chosen.short else 3)
    print(
        f"{place.config.subject.model}, {place.subject.hook}, {chosen.tokens:,} tokens, vocabulary "
        f"{place.subject.vocabulary:,}; top-k SAEs of {chosen.latents:,} latents, k = {chosen.k}; "
        f"{chosen.threads} threads, torch {torch.__version__}\n"
    )
    print("| figure | seconds | against | ratio | target |\n|---|---|---|---|---|")
    for name, seconds, against, target in rows:
        print(f"| {name} | {seconds:.3g} | {against:.3g} | {seconds / against:.3g} | {target} |")


Row = tuple[str, float, float, str]


def one_more(place: Place, sae: InferenceSae, folder: Path, *, rounds: int) -> list[Row]:
    """Time one SAE on a cached clean pass against the forward pass and the encoder that it cannot do without."""
    store = folder / "cached"
    clean = CleanPass(place.context(store))
    batches = list(clean.batches("set-up"))

    def forward(batch: CleanBatch) -> None:
        clean.restart(batch.ids, batch.stored, lambda x: x)

    def floor() -> None:
        for batch in batches:
            forward(batch)
            with torch.no_grad():
                decode_sparse(sae, sae.encode_sparse(batch.activations))

    def with_losses() -> None:
        for batch in batches:
            with torch.no_grad():
                clean.losses(batch, sae(batch.activations))

    took = interleaved(
        {
            "one": lambda: list(measure([SubjectSae(1, "one", sae)], place.context(store), None)),
            "losses": with_losses,
            "floor": floor,
        },
        rounds=rounds,
    )
    return [
        ("one more SAE / its floor", took["one"], took["floor"], "≤ 1.2"),
        ("of that, forward passes with their losses / floor", took["losses"], took["floor"], ""),
    ]


def together(place: Place, saes: list[InferenceSae], folder: Path, *, rounds: int) -> list[Row]:
    """Time eight SAEs in one pass against one after another, and the two set-ups."""
    entries = [SubjectSae(number, f"sae {number}", sae) for number, sae in enumerate(saes)]
    fresh = (folder / f"store {number}" for number in count())

    def evaluate(chosen: list[SubjectSae], store: Path) -> None:
        list(measure(chosen, place.context(store), None))

    def one_after_another(stores: Callable[[], Path]) -> None:
        for entry in entries:
            evaluate([entry], stores())

    def set_up(store: Path) -> float:
        started = time.perf_counter()
        for _ in CleanPass(place.context(store)).batches("set-up"):
            pass
        return time.perf_counter() - started

    works: dict[str, Callable[[], object]] = {
        "together": lambda: evaluate(entries, next(fresh)),
        "alone": lambda: one_after_another(lambda: next(fresh)),
        "shared": lambda: one_after_another(partial(Path, next(fresh))),
    }
    took = interleaved(works, rounds=rounds, warm_up=0)
    stores = [next(fresh) for _ in range(max(3, rounds))]
    first = statistics.median(set_up(store) for store in stores)
    second = statistics.median(set_up(store) for store in stores)
    return [
        (f"{N_SAES} SAEs together / each by itself", took["together"], took["alone"], "≤ 0.5"),
        (f"{N_SAES} SAEs together / one after another on one clean pass", took["together"], took["shared"], ""),
        ("set-up of the second evaluation / of the first", second, first, "< 0.03"),
    ]


def made_sae(
    d_model: int, n_latents: int, k: int, *, seed: int, normalize: InputNormalization = "unit"
) -> InferenceSae:
    """Return an SAE of random directions, normalised as ours are by default."""
    directions = torch.randn(n_latents, d_model, generator=torch.Generator().manual_seed(seed))
    directions /= directions.norm(dim=1, keepdim=True)
    facts = SaeFacts(
        selection="topk", k=k, d_model=d_model, n_latents=n_latents, normalize=normalize, subtracts_bias=True,
        dtype="float32",
    )  # fmt: skip
    tensors = {
        "W_enc": directions.T.contiguous(),
        "b_enc": torch.zeros(n_latents),
        "W_dec": directions,
        "b_dec": torch.zeros(d_model),
    }
    return InferenceSae(facts, tensors)


if __name__ == "__main__":
    main()
