"""The language model that ships is a real one, and autoencoders of it behave as the papers say."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.config.evaluation.ablation import AblationOptions
from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.evaluation.families import Family
from orchestrator.config.evaluation.probes import ProbesOptions, ProbeTask
from orchestrator.config.job import JobConfig, Part
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from worker.activations import stream
from worker.activations.heldout_split import Contexts
from worker.data import token_file
from worker.data.standard_library import is_held_out, standard_library_files
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.metric import Measured, Score, SubjectSae
from worker.evaluation.registry import family
from worker.evaluation.shared_store import SharedStore
from worker.sae.inference import InferenceSae
from worker.sae.train_state import TrainState
from worker.subject import model
from worker.trainer.train import train

BIGRAM_LOSS = 4.62
"""Nats per token of a Witten-Bell bigram on the held-out documents: examples/subject/README.md."""
TRAINING = {
    "batch_tokens": 256, "shuffle_tokens": 16_384, "heldout_tokens": 4096, "max_tokens": 98_304,
    "dead_after_tokens": 65_536,
}  # fmt: skip
Size = tuple[int, int]
"""n and k."""


def _config(n_latents: int, k: int) -> JobConfig:
    return parse(
        {
            "subject": {"layer": 3},
            "data": {"max_tokens": 150_000},
            "sae": {"n_latents": n_latents, "k": k},
            "optimizer": {"ema": 0.99, "lr": 0.02 * (128 / n_latents) ** 0.5},
            "training": TRAINING,
        }
    )


@pytest.fixture(scope="module")
def shipped() -> model.Subject:
    return model.load(_config(64, 4).subject)


@pytest.fixture(scope="module")
def trained(shipped: model.Subject, tmp_path_factory: pytest.TempPathFactory) -> dict[Size, TrainState]:
    """Train four autoencoders on one stream of activations."""
    config = _config(64, 4)
    packed = token_file.pack(config.data, shipped.tokenizer, tmp_path_factory.mktemp("tokens"))
    n_batches = TRAINING["max_tokens"] // TRAINING["batch_tokens"]
    batches = list(islice(stream.stream(shipped, packed, config), n_batches))
    sample = stream.sample(shipped, packed, config, 8192)
    heldout = stream.heldout(shipped, packed, config)
    found = {}
    for n_latents, k in ((64, 4), (64, 8), (256, 4), (256, 8)):
        state = TrainState.fresh(_config(n_latents, k), sample)
        for _ in train(state, batches, config=_config(n_latents, k), heldout=heldout):
            pass
        found[n_latents, k] = state
    return found


def test_it_predicts_source_it_never_saw_far_better_than_a_bigram(shipped: model.Subject) -> None:
    texts = [text for path, text in standard_library_files() if is_held_out(path)]
    with torch.inference_mode():
        losses = [_loss(shipped, ids) for ids in islice(_windows(shipped, texts), 40)]
    assert len(losses) == 40
    assert sum(losses) / len(losses) < BIGRAM_LOSS - 1


def _windows(shipped: model.Subject, texts: list[str]) -> Iterator[Tensor]:
    """Yield the first window of 128 tokens of each document that is long enough, then the next of each."""
    ids = [shipped.tokenizer(text[:20_000], return_tensors="pt").input_ids[0] for text in texts]
    for start in range(0, 4096, 128):
        yield from (i[start : start + 128].unsqueeze(0) for i in ids if len(i) >= start + 128)


def _loss(shipped: model.Subject, ids: Tensor) -> float:
    logits = model.run_patched([shipped], ids, [lambda found: found])
    return float(functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]))


def test_every_autoencoder_beats_its_untrained_start_by_far(trained: dict[Size, TrainState]) -> None:
    for state in trained.values():
        assert state.untrained_fvu is not None
        assert state.curve[-1].fvu < 0.6 * state.untrained_fvu
        assert state.curve[-1].fvu < state.curve[0].fvu


def test_fvu_falls_with_latents_at_fixed_k_and_with_k_at_fixed_latents(trained: dict[Size, TrainState]) -> None:
    last = {size: state.curve[-1].fvu for size, state in trained.items()}
    for k in (4, 8):
        assert last[256, k] < 0.97 * last[64, k]
    for n_latents in (64, 256):
        assert last[n_latents, 8] < 0.97 * last[n_latents, 4]


def test_no_token_has_more_than_k_latents(trained: dict[Size, TrainState]) -> None:
    for (_, k), state in trained.items():
        assert all(0 < point.l0 <= k for point in state.curve)


Scores = dict[tuple[str, str], Score]


@pytest.fixture(scope="module")
def scores(
    shipped: model.Subject, trained: dict[Size, TrainState], tmp_path_factory: pytest.TempPathFactory
) -> dict[Size, Scores]:
    """Measure the four together, on the held-out text."""
    folder = tmp_path_factory.mktemp("evaluation")
    config = _config(64, 4)
    packed = token_file.pack(config.data, shipped.tokenizer, folder)
    plan = EvaluationConfig(
        plan=EvaluationPlan(), sae=EvaluatedSaeRef(id=1), subject=config.subject, data=config.data,
        heldout_tokens=TRAINING["heldout_tokens"],
    )  # fmt: skip
    text = HeldoutText(packed, Contexts.of(packed, config), config.data.source)
    context = EvaluationContext(
        plan, torch.device("cpu"), SharedStore(folder / "store"), lambda phase, share: None, shipped, text
    )
    options: dict[Family, Part] = {
        "downstream": DownstreamOptions(),
        "ablation": AblationOptions(pairs=256, variants=("from start",)),
        "probes": ProbesOptions(
            tasks=(ProbeTask(source="python:stdlib/in_comment"),), train_examples=500, test_examples=500
        ),
    }
    saes = [SubjectSae(n, f"{size}", _as_inference(state, *size)) for n, (size, state) in enumerate(trained.items())]
    found: dict[Size, Scores] = {size: {} for size in trained}
    for name, asked in options.items():
        for measured in family(name)(saes, context, asked):
            assert isinstance(measured, Measured), measured
            found[list(trained)[measured.job_id]] |= {(one.metric, one.variant): one for one in measured.scores}
    return found


def _as_inference(state: TrainState, n_latents: int, k: int) -> InferenceSae:
    facts = SaeFacts(
        selection="topk", d_model=128, n_latents=n_latents, k=k, normalize="unit", subtracts_bias=True, dtype="float32"
    )
    return InferenceSae.from_trained(state.best(), facts)


@pytest.mark.parametrize("metric", ["delta_ce", "kl"])
def test_what_a_reconstruction_costs_falls_with_latents_and_with_k(scores: dict[Size, Scores], metric: str) -> None:
    found = {size: of_sae[metric, ""] for size, of_sae in scores.items()}
    for worse, better in (((64, 4), (256, 4)), ((64, 8), (256, 8)), ((64, 4), (64, 8)), ((256, 4), (256, 8))):
        assert _is_below(found[better], found[worse]), (metric, worse, better)


@pytest.mark.parametrize("baseline", ["channels", "random"])
def test_the_best_latent_tells_comments_apart_better_than_the_best_channel_or_direction(
    scores: dict[Size, Scores], baseline: str
) -> None:
    for size, of_sae in scores.items():
        assert _is_below(of_sae["probe_loss", ""], of_sae["probe_loss", baseline]), size


@pytest.mark.parametrize("baseline", ["channels", "random directions"])
def test_a_latent_that_is_taken_out_of_a_context_has_sparser_effects_than_a_channel_or_direction(
    scores: dict[Size, Scores], baseline: str
) -> None:
    """Taken out at one position alone it has not, in so small a model: docs/evaluation.md."""
    for size, of_sae in scores.items():
        high = of_sae["ablation_ratio", f"{baseline} from start"].high
        assert high is not None, size
        assert high < 0.9, size


def _is_below(one: Score, other: Score) -> bool:
    """Say whether the 90% interval of a score lies below that of another."""
    assert one.high is not None
    assert other.low is not None
    return one.high < other.low


def test_the_examples_of_sweeps_expand() -> None:
    from orchestrator.sweep import check_paths, expand

    examples = Path(__file__).parents[2] / "examples"
    for file in examples.glob("*.yaml"):
        sweep = expand(file)
        assert sweep.configs
        check_paths(sweep.configs)
