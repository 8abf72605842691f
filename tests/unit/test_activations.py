"""The stream: a pure function of config and position; what is held out; what is refused."""

import json
import random
from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from orchestrator.config import JobConfig
from orchestrator.errors import ConfigError, SubjectError
from tests.unit.tiny_models import CONTEXT, TEXT, WIDTH, save_model
from worker import activations
from worker.activations import captured_per_vector, heldout, sample, stream
from worker.contexts import Contexts
from worker.sae.normalize import normalize
from worker.subject import Subject, capture, load
from worker.tokens import TokenFile, pack

WINDOW, BATCH = 128, 32


class Parts(NamedTuple):
    subject: Subject
    tokens: TokenFile
    config: JobConfig


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parts")
    letters = random.Random(0)
    documents = "\n".join(json.dumps({"text": "".join(letters.choices(TEXT, k=60))}) for _ in range(60))
    (folder / "text.jsonl").write_text(documents)
    config = JobConfig.model_validate(
        {
            "subject": {"model": str(save_model("gpt2", folder / "model"))},
            "data": {"source": str(folder / "text.jsonl"), "context_length": 16},
            "training": {"batch_tokens": BATCH, "shuffle_tokens": WINDOW, "heldout_tokens": 100, "seed": 3},
        }
    )
    subject = load(config.subject)
    return Parts(subject, pack(config.data, subject.tokenizer, folder / "tokens"), config)


def change(parts: Parts, part: str, **values: Any) -> Parts:
    known = parts.config.model_dump()
    return parts._replace(config=JobConfig.model_validate(known | {part: known[part] | values}))


def rows(values: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in values}


def first(parts: Parts, n: int, start: int = 0) -> list[Tensor]:
    return list(islice(stream(*parts, start_tokens=start), n))


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
    indices, skip = contexts.span(WINDOW, 2 * WINDOW)
    ids = torch.from_numpy(parts.tokens.contexts(indices))
    kept = torch.from_numpy(contexts.is_trained(ids.numpy()))
    expected = normalize(capture(parts.subject, ids)[kept], "unit").vectors[skip : skip + WINDOW]
    found = torch.cat(first(parts, WINDOW // BATCH, WINDOW))
    assert rows(found) == rows(expected)
    assert not torch.equal(found, expected)
    other = torch.cat(first(change(parts, "training", seed=4), WINDOW // BATCH, WINDOW))
    assert rows(other) != rows(found)


def test_forward_passes_all_have_one_size(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(activations.CAPTURE_TOKENS, "cpu", 64)
    sizes: list[int] = []

    def counted(subject: Subject, ids: Tensor) -> Tensor:
        sizes.append(len(ids))
        return capture(subject, ids)

    monkeypatch.setattr(activations, "capture", counted)
    first(parts, WINDOW // BATCH)
    assert set(sizes[:-1]) == {4}
    assert sum(sizes) * 16 < WINDOW * captured_per_vector(parts.tokens, parts.config) + 3 * 16


def test_heldout_is_fixed_and_apart(parts: Parts) -> None:
    found = heldout(*parts)
    contexts = Contexts.of(parts.tokens, parts.config)
    assert len(found) == int(contexts.is_trained(parts.tokens.contexts(contexts.heldout)).sum())
    assert torch.equal(found, heldout(*change(parts, "training", seed=9)))
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
    assert captured_per_vector(every.tokens, every.config) == 1
    assert captured_per_vector(parts.tokens, parts.config) > 1
    assert len(heldout(*every)) == 7 * 16 > len(heldout(*parts))


@pytest.mark.parametrize("kind", ["layer_norm", "none"])
def test_other_normalisations(parts: Parts, kind: str) -> None:
    batch = first(change(parts, "sae", normalize=kind), 1)[0]
    torch.autograd.backward(batch.requires_grad_().square().sum())
    assert not torch.allclose(batch.norm(dim=-1), torch.ones(BATCH))


def test_what_does_not_fit_is_said(parts: Parts) -> None:
    long = parts._replace(tokens=parts.tokens.__class__(**vars(parts.tokens) | {"context_length": CONTEXT + 1}))
    with pytest.raises(ConfigError, match=rf"(?s)context_length = {CONTEXT + 1}.*reads {CONTEXT}"):
        next(stream(*long))
    strange = parts._replace(tokens=parts.tokens.__class__(**vars(parts.tokens) | {"largest_id": 64}))
    with pytest.raises(SubjectError, match=r"gives id 64, .* knows 64 tokens"):
        heldout(*strange)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_activation_is_named(parts: Parts, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    def broken(subject: Subject, ids: Tensor) -> Tensor:
        found = capture(subject, ids)
        found[1, 5, 2] = bad
        return found

    monkeypatch.setattr(activations, "capture", broken)
    contexts = Contexts.of(parts.tokens, change(parts, "data", special_tokens="train").config)
    with pytest.raises(SubjectError, match=rf"(?s)token 5 of context {contexts.heldout[1]} .*float32"):
        heldout(*change(parts, "data", special_tokens="train"))
