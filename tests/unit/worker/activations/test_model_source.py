"""The activations of a language model: of one hook point, and of two that a config would read together."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from tests.unit.worker.activations.tiny_stream import BATCH, Parts, change, make_parts
from worker.activations.heldout_split import Contexts
from worker.activations.model_source import ModelActivations
from worker.activations.source import HookSlots, Vectors
from worker.subject.model import Subject

IDS = torch.arange(24).reshape(2, 12) % 64


class TwoLayers(ModelActivations):
    """Every config reads its own layer and the first one, as that of an autoencoder of several layers would."""

    def _views_of(self, config: JobConfig) -> tuple[Subject, ...]:
        low = config.subject.model_copy(update={"layer": 0})
        return self.subject.at(config.subject), self.subject.at(low)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    torch.set_num_threads(1)
    return make_parts(tmp_path_factory.mktemp("source"))


def same(ours: Vectors, *theirs: Tensor) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_slot_of_two_hook_points_holds_what_each_gives_alone(parts: Parts) -> None:
    low = change(parts, "subject", layer=0).config
    alone, both = ModelActivations(*parts), TwoLayers(*parts)
    assert both.key(parts.config) == alone.key(parts.config) + alone.key(low)
    slots = HookSlots(both)
    assert [slots.find(config) for config in (parts.config, low, parts.config)] == [0, 1, 0]
    assert same(slots.all[0].heldout, *alone.heldout(parts.config), *alone.heldout(low))
    assert same(slots.sample(0), *alone.sample(parts.config, 16_384), *alone.sample(low, 16_384))
    assert both.flops([low]) == alone.flops([low])
    one_by_one = islice(alone.stream([parts.config, low], start_tokens=BATCH), 6)
    together = islice(both.stream([parts.config, low], start_tokens=BATCH), 6)
    for (high_alone, low_alone), (first, second) in zip(one_by_one, together, strict=True):
        assert same(first, *high_alone, *low_alone)
        assert same(second, *low_alone, *low_alone)


def test_the_model_runs_with_its_hook_points_patched(parts: Parts) -> None:
    alone, both = ModelActivations(*parts), TwoLayers(*parts)
    clean = parts.subject.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(alone.run_patched(parts.config, IDS, [lambda x: x]), clean)
    assert torch.equal(both.run_patched(parts.config, IDS, [lambda x: x] * 2), clean)
    first = alone.run_patched(parts.config, IDS, [torch.zeros_like])
    assert not torch.allclose(first, clean, atol=1e-3)
    # The later layer is replaced whatever is done before it.
    assert torch.equal(both.run_patched(parts.config, IDS, [torch.zeros_like, torch.zeros_like]), first)
    with pytest.raises(ValueError, match="shorter"):
        both.run_patched(parts.config, IDS, [torch.zeros_like])


def test_its_facts_tell_the_tokens_of_one_pass(parts: Parts) -> None:
    for special in ("mask", "train"):
        one = change(parts, "data", special_tokens=special)
        contexts = Contexts.of(one.tokens, one.config)
        assert ModelActivations(*one).facts(one.config)["tokens"]["trainable"] == contexts.n_vectors
