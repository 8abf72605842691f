"""The stream: a pure function of config and position; what is held out; what is refused."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.config.job import Dtype
from orchestrator.errors import ConfigError, SubjectError
from tests.unit.worker.activations.tiny_stream import BATCH, WINDOW, Parts, change, first, forwards, make_parts, rows
from tests.unit.worker.subject.tiny_models import CONTEXT, WIDTH
from worker.accelerator import fast_dtype
from worker.activations import forward
from worker.activations.cache import key_of
from worker.activations.heldout_split import Contexts
from worker.activations.stream import heldout, sample, shared_stream, stream
from worker.sae.normalize import normalize
from worker.subject.model import capture, load


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("parts"))


def test_batches_are_normalised_vectors(parts: Parts) -> None:
    batch = first(parts, 1)[0]
    assert batch.shape == (BATCH, WIDTH)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch.norm(dim=-1), torch.ones(BATCH))
    torch.testing.assert_close(batch.mean(dim=-1), torch.zeros(BATCH), atol=1e-6, rtol=0)
    torch.autograd.backward(batch.requires_grad_().square().sum())


@pytest.mark.parametrize("start", [BATCH, WINDOW, 3 * WINDOW + 2 * BATCH, 14 * WINDOW + BATCH])
def test_the_stream_goes_on_anywhere_bit_for_bit(parts: Parts, start: int) -> None:
    through = first(parts, start // BATCH + 6)[start // BATCH :]
    again = first(parts, 6, start)
    assert all(torch.equal(a, b) for a, b in zip(through, again, strict=True))


def test_a_window_holds_its_vectors_in_a_seeded_order(parts: Parts) -> None:
    contexts = Contexts.of(parts.tokens, parts.config)
    number = contexts.number_at(WINDOW)
    indices, skip = contexts.run(number, 30), WINDOW - contexts.first_vector(number)
    ids = torch.from_numpy(parts.tokens.contexts(indices))
    kept = torch.from_numpy(contexts.is_trained(ids.numpy()))
    expected = normalize(capture(parts.subject, ids)[kept], "unit").vectors[skip : skip + WINDOW]
    found = torch.cat(first(parts, WINDOW // BATCH, WINDOW))
    assert rows(found) == rows(expected)
    assert not torch.equal(found, expected)
    other = torch.cat(first(change(parts, "data", seed=4), WINDOW // BATCH, WINDOW))
    assert rows(other) != rows(found)


def test_forward_passes_all_have_one_size(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "CPU_TOKENS", 64)
    n_windows = 5
    with forwards(parts) as sizes:
        first(parts, n_windows * WINDOW // BATCH)
        n_forwards = len(sizes)
        heldout(*parts)
    assert set(sizes) == {4}
    # Nothing is captured twice at the borders of windows: no more than one pass is not used up.
    needed = n_windows * WINDOW * Contexts.of(parts.tokens, parts.config).captured_per_vector
    assert n_forwards * 64 < 1.1 * needed + 64


def test_heldout_is_fixed_and_apart(parts: Parts) -> None:
    found = heldout(*parts)
    contexts = Contexts.of(parts.tokens, parts.config)
    assert len(found) == int(contexts.is_trained(parts.tokens.contexts(contexts.heldout)).sum())
    assert torch.equal(found, heldout(*change(parts, "data", seed=9)))
    trained = rows(torch.cat(first(parts, -(-contexts.n_vectors // BATCH))))
    # The first tokens of two contexts may well be equal; sixteen in a row are not.
    every = change(parts, "data", special_tokens="train")
    last = heldout(*every).reshape(-1, 16, WIDTH)[:, -1]
    assert len(rows(last)) == contexts.n_heldout
    assert not rows(last) & trained


def test_a_sample_is_of_the_training_part(parts: Parts) -> None:
    stepping = stream(*parts)
    before = next(stepping)
    found = sample(*parts, WINDOW)
    assert torch.equal(next(stepping), first(parts, 2)[1])
    assert torch.equal(before, first(parts, 1)[0])
    assert rows(found) == rows(torch.cat(first(parts, WINDOW // BATCH)))
    n_vectors = Contexts.of(parts.tokens, parts.config).n_vectors
    assert len(sample(*parts, 10**9)) == n_vectors


def test_special_tokens_train_only_when_asked(parts: Parts) -> None:
    every = change(parts, "data", special_tokens="train")
    assert Contexts.of(every.tokens, every.config).captured_per_vector == 1
    assert Contexts.of(parts.tokens, parts.config).captured_per_vector > 1
    assert len(heldout(*every)) == 7 * 16 > len(heldout(*parts))


@pytest.mark.parametrize("kind", ["layer_norm", "none"])
def test_other_normalisations(parts: Parts, kind: str) -> None:
    batch = first(change(parts, "sae", normalize=kind), 1)[0]
    torch.autograd.backward(batch.requires_grad_().square().sum())
    assert not torch.allclose(batch.norm(dim=-1), torch.ones(BATCH))


def test_what_does_not_fit_is_said(parts: Parts) -> None:
    data = parts.config.data.model_copy(update={"context_length": CONTEXT + 1})
    long = parts._replace(config=parts.config.model_copy(update={"data": data}))
    with pytest.raises(ConfigError, match=rf"(?s)context_length = {CONTEXT + 1}.*reads {CONTEXT}"):
        next(stream(*long))
    strange = parts._replace(tokens=parts.tokens.__class__(**vars(parts.tokens) | {"largest_id": 64}))
    with pytest.raises(SubjectError, match=r"gives id 64, .* knows 64 tokens"):
        heldout(*strange)
    begun = parts._replace(tokens=parts.tokens.__class__(**vars(parts.tokens) | {"bos_id": 64}))
    with pytest.raises(SubjectError, match=r"(?s)BOS token has id 64, .* knows 64 tokens.*prepend_bos: false"):
        heldout(*begun)


@pytest.fixture
def broken_id(parts: Parts, request: pytest.FixtureRequest) -> Iterator[int]:
    """Break what the hooked block gives wherever the text has one token."""
    broken = 7
    read: list[Tensor] = []

    def spoil(_module: Any, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., 2][read[-1] == broken] = request.param
        return output

    model = parts.subject.model.transformer
    marks = [
        model.wte.register_forward_pre_hook(lambda _, args: read.append(args[0])),
        model.h[parts.subject.hook.layer].register_forward_hook(spoil, prepend=True),
    ]
    yield broken
    for mark in marks:
        mark.remove()


@pytest.mark.parametrize("broken_id", [float("nan"), float("inf")], indirect=True)
def test_the_first_bad_token_is_named(parts: Parts, broken_id: int) -> None:
    contexts = Contexts.of(parts.tokens, parts.config)
    row, position = np.argwhere(parts.tokens.contexts(contexts.heldout) == broken_id)[0]
    with pytest.raises(SubjectError, match=rf"(?s)token {position} of context {contexts.heldout[row]} .*float32"):
        heldout(*parts)
    order = contexts.run(0, 30)
    row, position = np.argwhere(parts.tokens.contexts(order) == broken_id)[0]
    where = rf"token {position} of context {order[row]} \(id {broken_id}\)"
    with pytest.raises(SubjectError, match=where):
        first(parts, 1)


def places(parts: Parts) -> list[Parts]:
    """Give the same text at four places of the model, two of them the same but for the normalisation."""
    there: list[dict[str, Any]] = [{"layer": 1}, {"layer": 0, "site": "mlp_post"}, {"layer": 2}, {"layer": 1}]
    found = [change(parts, "subject", **values) for values in there]
    found[3] = change(found[3], "sae", normalize="none")
    return [p._replace(subject=parts.subject.at(p.config.subject)) for p in found]


@pytest.mark.parametrize("start", [0, 2 * WINDOW + BATCH])
def test_a_shared_stream_gives_what_each_gets_alone(parts: Parts, start: int) -> None:
    several = places(parts)
    alone = [first(p, 6, start) for p in several]
    together = shared_stream(
        [p.subject for p in several], parts.tokens, [p.config for p in several], start_tokens=start
    )
    for step, batches in enumerate(islice(together, 6)):
        assert all(torch.equal(batch, alone[i][step]) for i, batch in enumerate(batches))
    assert not torch.equal(alone[0][0], alone[2][0])


def test_a_shared_stream_runs_one_forward(parts: Parts) -> None:
    several = places(parts)
    done: list[int] = []
    marks = [
        block.register_forward_hook(lambda *_, i=i: done.append(i))
        for i, block in enumerate(parts.subject.model.transformer.h)
    ]
    first(several[2], WINDOW // BATCH)
    alone = done.copy()
    done.clear()
    several = [several[1], several[0], several[0]]
    batches = next(shared_stream([p.subject for p in several], parts.tokens, [p.config for p in several]))
    for mark in marks:
        mark.remove()
    assert batches[1] is batches[2]
    assert set(alone) == {0, 1, 2}
    # Blocks 0 and 1, as often as alone, and block 2 never.
    assert done == [i for i in alone if i < 2]


def test_who_does_not_agree_cannot_share(parts: Parts) -> None:
    for part, name, value in (("data", "seed", 1), ("training", "batch_tokens", 64)):
        other = change(parts, part, **{name: value})
        together = shared_stream([parts.subject] * 2, parts.tokens, [parts.config, other.config])
        with pytest.raises(ConfigError, match=rf"{part}.{name} is .* cannot share a stream"):
            next(together)
    with pytest.raises(ConfigError, match=r"subject.dtype = 'bfloat16', and the model in memory"):
        parts.subject.at(change(parts, "subject", dtype="bfloat16").config.subject)


def test_of_an_open_precision_every_view_has_the_one_the_model_was_loaded_in(parts: Parts) -> None:
    opened = change(parts, "subject", dtype="auto").config.subject
    assert load(opened).precision == fast_dtype("cpu")
    dtypes: tuple[Dtype, ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        subject = load(opened.settled(dtype))
        assert {subject.precision, subject.at(opened).precision} == {dtype}
        (block,) = {value.dtype for value in subject.at(opened).model.transformer.h[0].parameters()}
        assert block == getattr(torch, dtype)
        by_name = load(change(parts, "subject", dtype=dtype).config.subject)
        assert key_of(subject, parts.tokens) == key_of(by_name, parts.tokens), "one cache for what is the same"
    assert opened.settled(None) == opened
    assert parts.config.subject.settled("bfloat16") == parts.config.subject, "what a config says is never changed"


def test_sdpa_runs_where_the_architecture_knows_it(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(kwargs["is_causal"] and kwargs.get("attn_mask") is None)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    capture(parts.subject, torch.zeros(2, 16, dtype=torch.long))
    # Once for each block up to the hook point, and without a mask, which would bar the fused kernel.
    assert calls == [True] * ((parts.subject.hook.layer or 0) + 1)
