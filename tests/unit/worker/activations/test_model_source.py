"""The activations of a language model: of one hook point, and of several that a config reads together."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from orchestrator.errors import ConfigError
from tests.unit.worker.activations.tiny_stream import BATCH, Parts, change, forwards, make_parts, rows
from tests.unit.worker.subject.tiny_models import LAYERS
from worker.activations import forward
from worker.activations.heldout_split import Contexts
from worker.activations.model_source import ModelActivations
from worker.activations.source import HookSlots, Vectors, joined
from worker.subject.model import check_widths

IDS = torch.arange(24).reshape(2, 12) % 64


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("source"))


def same(ours: Vectors, *theirs: Tensor) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_layers_read_together_are_what_each_gives_alone_from_one_forward_pass(parts: Parts) -> None:
    configs = [change(parts, "subject", layer=layer).config for layer in range(LAYERS)]
    everything, one = change(parts, "subject", layers="all").config, change(parts, "subject", layers=[1]).config
    source = ModelActivations(*parts)
    assert source.key(everything) == sum((source.key(config) for config in configs), ())
    slots = HookSlots(source)
    assert [slots.find(config) for config in (everything, configs[1], one, everything)] == [0, 1, 1, 0]
    assert [slot.n_layers for slot in slots.all] == [LAYERS, 1]
    with forwards(parts) as passes:
        first = source.heldout(configs[-1])
        n_alone = len(passes)
        assert torch.equal(slots.all[0].heldout, joined(source.heldout(everything)))
        assert len(passes) == 2 * n_alone
    assert same(source.heldout(everything), *source.heldout(configs[0]), *source.heldout(configs[1]), *first)
    assert torch.equal(slots.sample(0), torch.cat([source.sample(config, 16_384)[0] for config in configs]))
    assert source.flops([everything]) == source.flops([configs[-1]])
    alone = islice(source.stream(configs, start_tokens=BATCH), 6)
    together = islice(source.stream([configs[1], everything], start_tokens=BATCH), 6)
    for each, (middle, every) in zip(alone, together, strict=True):
        assert same(every, *(vectors[0] for vectors in each))
        assert middle[0] is every[1]
    assert source.facts(everything)["subject"]["layers"] == [0, 1, 2]


def test_a_stream_begins_with_what_was_captured_for_the_sample(parts: Parts) -> None:
    source, config = ModelActivations(*parts), parts.config
    plain = [*islice(ModelActivations(*parts).stream([config], start_tokens=0), 12)]
    size = forward.CPU_TOKENS // parts.tokens.context_length
    with forwards(parts) as passes:
        (sample,) = source.sample(config, 100)
        n_sampled = len(passes)
        assert passes == [size] * n_sampled
        found = [*islice(source.stream([config], start_tokens=0), 12)]
        n_streamed = len(passes) - n_sampled
        again = [*islice(source.stream([config], start_tokens=0), 12)]
        assert len(passes) - n_sampled - n_streamed == n_streamed + n_sampled
    for batches in (found, again):
        assert all(same(ours, *theirs) for (ours,), (theirs,) in zip(batches, plain, strict=True))
    stream_rows = {row for (batch,) in plain for vectors in batch for row in rows(vectors)}
    assert rows(sample) <= stream_rows


@pytest.mark.parametrize(("layer", "start"), [(0, 0), (1, BATCH)])
def test_another_place_or_position_captures_its_own(parts: Parts, layer: int, start: int) -> None:
    source = ModelActivations(*parts)
    sampled, other = (change(parts, "subject", layer=at).config for at in (1, layer))
    plain = next(ModelActivations(*parts).stream([other], start_tokens=start))
    source.sample(sampled, 100)
    assert same(next(source.stream([other], start_tokens=start))[0], *plain[0])


def test_layers_that_cannot_be_read_together_are_refused(parts: Parts) -> None:
    source, subject = ModelActivations(*parts), parts.subject
    for layers in ([0, LAYERS], [LAYERS + 4]):
        with pytest.raises(ConfigError, match=rf"subject.layers = .*{layers[-1]}.* has {LAYERS} blocks"):
            source.key(change(parts, "subject", layers=layers).config)
    with pytest.raises(ConfigError, match="one place is read here"):
        subject.at(change(parts, "subject", layers=[0, 1]).config.subject)
    low, high = (subject.at(change(parts, "subject", layer=layer).config.subject) for layer in (0, 1))
    check_widths([low, high])
    with pytest.raises(ConfigError, match="one SAE reads vectors of one width"):
        check_widths([low, replace(high, d_model=8)])


def test_the_model_runs_with_its_hook_points_patched(parts: Parts) -> None:
    source, both = ModelActivations(*parts), change(parts, "subject", layers=[0, 1]).config
    high = change(parts, "subject", layer=1).config
    clean = parts.subject.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(source.run_patched(high, IDS, [lambda x: x]), clean)
    assert torch.equal(source.run_patched(both, IDS, [lambda x: x] * 2), clean)
    first = source.run_patched(high, IDS, [torch.zeros_like])
    assert not torch.allclose(first, clean, atol=1e-3)
    # The later layer is replaced whatever is done before it.
    assert torch.equal(source.run_patched(both, IDS, [torch.zeros_like, torch.zeros_like]), first)
    with pytest.raises(ValueError, match="shorter"):
        source.run_patched(both, IDS, [torch.zeros_like])


def test_its_facts_tell_the_tokens_of_one_pass(parts: Parts) -> None:
    for special in ("mask", "train"):
        one = change(parts, "data", special_tokens=special)
        contexts = Contexts.of(one.tokens, one.config)
        assert ModelActivations(*one).facts(one.config)["tokens"]["trainable"] == contexts.n_vectors
