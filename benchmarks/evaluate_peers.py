"""SAELens's `run_evals` on the model, the text and the tokens that our evaluation reads, and the time of both.

Where SAELens can be imported (`make peers`): .venv-peers/bin/python -m benchmarks.evaluate_peers. Ours: the families
reconstruction and downstream of one SAE, from an empty store (first) and on the clean pass that it left (next).
Theirs: every metric of `run_evals` but those of the weights, in batches of as many contexts.
"""

import argparse
import importlib
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.evaluate import Place, made_sae
from benchmarks.interleaved_timing import interleaved
from worker.evaluation import downstream, reconstruction
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, SubjectSae
from worker.formats import registry
from worker.sae.inference import InferenceSae
from worker.sae.native.kernels import use
from worker.subject.model_files import locate, quiet

BATCH = 32
"""Contexts."""
PAIRS = {
    ("ce_clean", ""): "ce_loss_without_sae",
    ("ce_patched", ""): "ce_loss_with_sae",
    ("ce_zero", ""): "ce_loss_with_ablation",
    ("recovered_ce", ""): "ce_loss_score",
    ("explained_variance", "raw"): "explained_variance",
    ("mse", "raw"): "mse",
    ("cosine", ""): "cossim",
    ("norm_ratio", ""): "l2_ratio",
    ("l0", ""): "l0",
    ("l1", ""): "l1",
}
"""Our metric and variant, and SAELens's name of the same."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--short", action="store_true", help="fewer rounds")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    quiet()
    with tempfile.TemporaryDirectory() as name:
        use(Path(name) / "kernels")  # as in an evaluation's process
        folder = Path(name)
        place = Place.of(folder / "tokens", model=None, tokens=16_384)
        sae = made_sae(place.subject.d_model, 1024, 32, seed=0, normalize="none")
        theirs = saelens(place, sae, folder)
        fresh = (folder / f"store {number}" for number in count())
        kept = folder / "kept"
        ours(place.context(kept), sae)
        took = interleaved(
            {
                "SAELens": theirs,
                "ours, first": lambda: ours(place.context(next(fresh)), sae),
                "ours, next": lambda: ours(place.context(kept), sae),
            },
            rounds=3 if chosen.short else 7,
            warm_up=1,
        )
    print(
        f"{chosen.threads} threads, torch {torch.__version__}\n\n| evaluation | seconds | SAELens / it |\n|---|---|---|"
    )
    for label, seconds in took.items():
        print(f"| {label} | {seconds:.3g} | {took['SAELens'] / seconds:.3g} |")


def ours(context: EvaluationContext, sae: InferenceSae) -> dict[tuple[str, str], float]:
    """Return the scores of both families, by metric and variant."""
    entry = SubjectSae(1, "one", sae)
    found: dict[tuple[str, str], float] = {}
    for family in (reconstruction, downstream):
        (measured,) = family.measure([entry], context, None)
        assert isinstance(measured, Measured), measured
        found |= {(score.metric, score.variant): score.value for score in measured.scores}
    return found


def saelens(place: Place, sae: InferenceSae, folder: Path) -> Callable[[], dict[str, float]]:
    """Return what evaluates an SAE as SAELens does, on the held-out tokens of a place, special ones included."""
    evals: Any = importlib.import_module("sae_lens.evals")
    registry.write(sae, folder / "saelens", format="saelens")
    theirs = importlib.import_module("sae_lens").SAE.load_from_disk(str(folder / "saelens"))
    theirs.cfg.metadata.hook_name = place.subject.hook.name
    model = importlib.import_module("sae_lens.load_model").HookedProxyLM(
        _another(place), place.subject.tokenizer, hook_names=[place.subject.hook.name]
    )
    scaler = importlib.import_module("sae_lens.training.activation_scaler").ActivationScaler()
    tokens = _Tokens(place.text.heldout.ids)
    n_batches = len(tokens.ids) // BATCH
    config = evals.get_eval_everything_config(BATCH, n_batches, n_batches)
    config.compute_featurewise_weight_based_metrics = False

    def run() -> dict[str, float]:
        tokens.reset_input_dataset()
        groups, _ = evals.run_evals(theirs, tokens, model, scaler, config, exclude_special_tokens=False)
        return {name: value for group in groups.values() for name, value in group.items()}

    return run


def _another(place: Place) -> Any:
    """Return the model loaded again: their hooks stay on it."""
    from transformers import AutoModelForCausalLM

    maker: Any = AutoModelForCausalLM
    return maker.from_pretrained(locate(place.config.subject)).eval()


class _Tokens:
    """Given tokens, by the methods of SAELens's ActivationsStore that `run_evals` calls."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self.context_size = ids.shape[1]
        self.store_batch_size_prompts = BATCH
        self._next = 0

    def get_batch_tokens(self, n_contexts: int) -> Tensor:
        self._next += n_contexts
        return self.ids[self._next - n_contexts : self._next]

    def reset_input_dataset(self) -> None:
        self._next = 0


if __name__ == "__main__":
    main()
