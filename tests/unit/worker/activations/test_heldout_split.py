"""The order of the stream: every trained vector once per epoch, held-out text never, and a number says where."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError
from worker.activations.heldout_split import Contexts
from worker.data.token_file import TokenFile

SPECIAL = 0
CONTEXT = 8


def token_file(folder: Path, n_tokens: int = 1003, *, bos_id: int | None = None, seed: int = 0) -> TokenFile:
    ids = np.random.default_rng(seed).integers(0, 5, n_tokens).astype(np.uint16)
    path = folder / "tokens.u16"
    ids.tofile(path)
    return TokenFile(
        path=path,
        id="x",
        n_tokens=n_tokens,
        largest_id=4,
        context_length=CONTEXT,
        special_ids=(SPECIAL,),
        bos_id=bos_id,
    )


def job(*, heldout_tokens: int = 50, seed: int = 0, special_tokens: str = "mask", batch_tokens: int = 16) -> JobConfig:
    training = {"heldout_tokens": heldout_tokens, "batch_tokens": batch_tokens, "shuffle_tokens": 64}
    return JobConfig.model_validate({"training": training, "data": {"special_tokens": special_tokens, "seed": seed}})


def vectors(contexts: Contexts, start: int, stop: int) -> list[tuple[int, int]]:
    """Name vectors [start, stop) by (context, position), read through the file."""
    number = contexts.number_at(start)
    indices = contexts.run(number, contexts.number_at(max(start, stop - 1)) + 1 - number)
    kept = contexts.is_trained(contexts.tokens.contexts(indices))
    named = [(int(indices[row]), int(position)) for row, position in np.argwhere(kept)]
    skip = start - contexts.first_vector(number)
    return named[skip : skip + stop - start]


def test_every_vector_comes_once_per_epoch(tmp_path: Path) -> None:
    contexts = Contexts.of(token_file(tmp_path), job())
    assert (contexts.n_heldout, contexts.n_training) == (7, 1003 // CONTEXT - 7)
    first = vectors(contexts, 0, contexts.n_vectors)
    second = vectors(contexts, contexts.n_vectors, 2 * contexts.n_vectors)
    trained = np.argwhere(contexts.is_trained(contexts.tokens.contexts(np.arange(contexts.n_training))))
    assert sorted(first) == sorted(second) == [(int(c), int(p)) for c, p in trained]
    assert first != second


def test_heldout_text_never_trains(tmp_path: Path) -> None:
    contexts = Contexts.of(token_file(tmp_path), job())
    assert contexts.heldout.tolist() == list(range(118, 125))
    assert max(c for c, _ in vectors(contexts, 0, contexts.n_vectors)) == 117


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), min_size=3, max_size=6), special=st.sampled_from(["mask", "train"]))
def test_a_number_alone_says_where_a_vector_is(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], special: str
) -> None:
    tokens = token_file(tmp_path_factory.mktemp("tokens"))
    edges = sorted({0, *cuts})
    whole = vectors(Contexts.of(tokens, job(special_tokens=special)), 0, max(edges, default=0) + 1)
    for start, stop in pairwise(edges):
        # Each stretch is asked of a fresh object: no history may matter.
        assert vectors(Contexts.of(tokens, job(special_tokens=special)), start, stop) == whole[start:stop]


def test_contexts_are_numbered_across_epochs(tmp_path: Path) -> None:
    contexts = Contexts.of(token_file(tmp_path), job(special_tokens="train"))
    n = contexts.n_training
    assert [contexts.number_at(v) for v in (0, 7, 8, n * 8 - 1, n * 8)] == [0, 0, 1, n - 1, n]
    assert [contexts.first_vector(i) for i in (0, 1, n, n + 3)] == [0, 8, n * 8, n * 8 + 24]
    across = contexts.run(n - 2, n + 4)
    assert across.tolist() == [*contexts.run(n - 2, 2), *contexts.run(n, n), *contexts.run(2 * n, 2)]
    assert sorted(across[2 : n + 2].tolist()) == list(range(n))


def test_seed_decides_the_order(tmp_path: Path) -> None:
    tokens = token_file(tmp_path)
    orders = [vectors(Contexts.of(tokens, job(seed=seed)), 0, 64) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("special", ["mask", "train"])
def test_a_prepended_bos_is_special(tmp_path: Path, special: str) -> None:
    contexts = Contexts.of(token_file(tmp_path, bos_id=SPECIAL), job(special_tokens=special))
    starts = [v for v in vectors(contexts, 0, contexts.n_vectors) if v[1] == 0]
    assert len(starts) == (contexts.n_training if special == "train" else 0)


def test_too_little_text_is_said_in_numbers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="40 tokens = 5 contexts of 8: too few for 50 held-out tokens"):
        Contexts.of(token_file(tmp_path, 40), job())
    with pytest.raises(ConfigError, match=r"(?s)only \d+ tokens are left to train, for batches of 64"):
        Contexts.of(token_file(tmp_path, 100), job(batch_tokens=64))
