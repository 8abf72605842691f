"""What a job with a lens reads: mapped after reading and before it is normalised, whoever else reads the stream."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config.job import JobConfig
from orchestrator.config.lens.facts import LENSES, LensFacts
from orchestrator.config.validation import parse
from orchestrator.errors import CheckpointsElsewhere, ConfigError
from tests.unit.worker.activations.tiny_stream import Parts, make_parts
from tests.unit.worker.subject.tiny_models import LAYERS, WIDTH, save_model
from worker.activations.cached_forward import CacheStore
from worker.activations.model_source import ModelActivations
from worker.activations.source import HookSlots
from worker.lens.opening import open_lens
from worker.lens.tuned_lens import TunedLens
from worker.sae.normalize import normalize
from worker.subject.model import load


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def lens(parts: Parts) -> TunedLens:
    draw = torch.Generator().manual_seed(3)
    weights, biases = (
        0.2 * torch.randn(LAYERS, WIDTH, WIDTH, generator=draw),
        torch.randn(LAYERS, WIDTH, generator=draw),
    )
    weights[-1], biases[-1] = 0, 0
    facts = LensFacts(
        model=parts.config.subject.model, fingerprint=parts.subject.fingerprint, n_layers=LAYERS, d_model=WIDTH
    )
    return TunedLens(weights=weights, biases=biases, facts=facts)


@pytest.fixture(scope="module")
def stored(lens: TunedLens, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    artifacts = tmp_path_factory.mktemp("artifacts")
    return artifacts / LENSES, lens.store(artifacts).sha256


def source(parts: Parts, stored: tuple[Path, str], store: CacheStore | None = None) -> ModelActivations:
    def opener(sha256: str, subject: Any) -> TunedLens:
        return open_lens(stored[0], sha256, subject)

    return ModelActivations(parts.subject, parts.tokens, parts.config, store=store, opener=opener)


def config(
    parts: Parts, *, lens: str | None = None, data: str = "stream", kind: str = "unit", **place: Any
) -> JobConfig:
    known = parts.config.model_dump()
    change = {"sae": {"lens": lens, "normalize": kind, "k": 1}, "data": known["data"] | {"activations": data}}
    return parse(known | change | {"subject": known["subject"] | place})


@pytest.mark.parametrize("place", [{"layer": 0}, {"layer": LAYERS - 1}, {"layers": "all"}])
@pytest.mark.parametrize("kind", ["unit", "none"])
def test_vectors_are_mapped_and_then_normalised(
    parts: Parts, lens: TunedLens, stored: tuple[Path, str], place: dict[str, Any], kind: str
) -> None:
    """Held-out set, sample and batches; the outputs of the last block are mapped to themselves."""
    reads = source(parts, stored)
    raw, mapped = config(parts, kind="none", **place), config(parts, lens=stored[1], kind=kind, **place)
    layers = range(LAYERS) if "layers" in place else [place["layer"]]
    both = [
        (reads.heldout(raw), reads.heldout(mapped)),
        (reads.sample(raw, 50), reads.sample(mapped, 50)),
        *islice(reads.stream([raw, mapped], start_tokens=64), 3),
    ]
    for before, after in both:
        for layer, x, vectors in zip(layers, before, after, strict=True):
            expected = x + x @ lens.weights[layer].T + lens.biases[layer]
            torch.testing.assert_close(vectors, normalize(expected, kind).vectors, rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]


def test_whoever_shares_the_stream_each_gets_what_it_gets_alone(
    parts: Parts, stored: tuple[Path, str], tmp_path: Path
) -> None:
    """Bit for bit; a cache holds the raw activations, which serve jobs with a lens and without."""
    plain, mapped = config(parts, layers="all"), config(parts, layers="all", lens=stored[1])
    alone = [next(iter(source(parts, stored).stream([one], start_tokens=0)))[0] for one in (plain, mapped)]
    together = next(iter(source(parts, stored).stream([plain, mapped, plain], start_tokens=0)))
    kept = [config(parts, layers="all", data="cache"), config(parts, layers="all", data="cache", lens=stored[1])]
    store = CacheStore(tmp_path / "cache", 1 << 30)
    cached = [next(iter(source(parts, stored, store).stream([one], start_tokens=0)))[0] for one in kept]
    again = next(iter(source(parts, stored, store).stream(kept[::-1], start_tokens=0)))[::-1]
    for found in (together[:2], cached, again):
        for mine, theirs in zip(found, alone, strict=True):
            assert all(map(torch.equal, mine, theirs))
    assert together[2][0] is together[0][0], "jobs of one slot share a tensor"


def test_jobs_with_and_without_a_lens_have_slots_of_their_own(parts: Parts, stored: tuple[Path, str]) -> None:
    slots = HookSlots(source(parts, stored))
    numbers = [slots.find(config(parts, layer=0, lens=lens)) for lens in (None, stored[1], None, stored[1])]
    assert numbers == [0, 1, 0, 1]
    assert not torch.equal(slots.all[0].heldout, slots.all[1].heldout)


def test_a_lens_costs_what_its_product_costs_and_the_last_layer_nothing(parts: Parts, stored: tuple[Path, str]) -> None:
    reads = source(parts, stored)
    plain, mapped = config(parts, layers="all"), config(parts, layers="all", lens=stored[1])
    reads.open_lens(mapped)
    assert reads.flops([mapped, mapped]) - reads.flops([plain]) == (LAYERS - 1) * 2 * WIDTH**2


def test_what_cannot_be_opened_is_said(parts: Parts, lens: TunedLens, stored: tuple[Path, str], tmp_path: Path) -> None:
    lenses, sha256 = stored
    with pytest.raises(CheckpointsElsewhere, match="nor the folder of lenses"):
        open_lens(tmp_path / "lenses", sha256, parts.subject)
    with pytest.raises(ConfigError, match="the lens 000000000000 is gone: there is no folder"):
        open_lens(lenses, "0" * 64, parts.subject)
    with pytest.raises(ConfigError, match="'my-lens' is no content id of a lens"):
        open_lens(lenses, "my-lens", parts.subject)
    other = load(parts.config.subject.model_copy(update={"model": str(save_model("gpt2", tmp_path / "other", seed=9))}))
    with pytest.raises(ConfigError, match=r"the lens is of .* with the weights .*, and the model read here, .*other"):
        open_lens(lenses, sha256, other)
    damaged = lens.store(tmp_path)
    (Path(damaged.uri) / "lens.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is not as it was written: .*lens\.json changed"):
        open_lens(tmp_path / LENSES, sha256, parts.subject)
