"""N2G: planted patterns are found exactly; batches of short texts give what single ones give; what is bad is said."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.config.evaluation.n2g import N2gOptions
from orchestrator.config.job import SubjectConfig
from orchestrator.config.sae_facts import Selection
from orchestrator.errors import ConfigError
from tests.unit.worker.evaluation.planted import (
    CONTEXT,
    FIRST,
    VOCABULARY,
    context_of,
    planted_sae,
    random_tokens,
    stand_in,
    token,
)
from tests.unit.worker.subject.tiny_models import save_model
from worker.evaluation import downstream
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.n2g import measure
from worker.evaluation.n2g.latent_acts import Firings
from worker.evaluation.n2g.patterns import Example, find_patterns
from worker.evaluation.n2g.samples import draw
from worker.evaluation.n2g.short_texts import ShortTexts, Tokens
from worker.evaluation.n2g.simulated import BigramCounts, scale
from worker.evaluation.n2g.trie import IndexedText, Pattern, Predicted, Trie, load_tries
from worker.subject.model import capture, load

A, B, C = 10, 11, 12
PLANTED = {
    "first position": ([FIRST], (None,), True),
    "one token": ([token(A)], (A,), False),
    "a * c": ([token(C), token(A, back=2)], (A, None, C), False),
    "b c": ([token(C), token(B, back=1)], (B, C), False),
    "a at the start": ([token(A), FIRST], (A,), True),
}
DIMENSIONS = [dimensions for dimensions, _, _ in PLANTED.values()]


def _by_name(scores: list[Score] | tuple[Score, ...]) -> dict[tuple[str, str], Score]:
    return {(score.metric, score.variant): score for score in scores}


def _measured(found: Measured | NotMeasured) -> Measured:
    assert isinstance(found, Measured), found
    return found


@pytest.mark.parametrize("selection", ["relu", "jumprelu", "topk"])
def test_planted_patterns_are_found(selection: Selection, tmp_path: Path) -> None:
    context = context_of(
        stand_in(), random_tokens(tmp_path / "t.u16", n_contexts=6000), tmp_path / "store", heldout_tokens=24_000
    )
    sae = SubjectSae(1, "1", planted_sae(DIMENSIONS, selection))
    (found,) = measure([sae], context, N2gOptions(build_tokens=64_000))
    by_name = _by_name(list(_measured(found).scores))
    for name in ("n2g_precision", "n2g_recall", "n2g_f1"):
        for variant in ("", "half_max", "all"):
            score = by_name[name, variant]
            assert (score.value, score.low, score.high, score.n) == (1.0, 1.0, 1.0, len(PLANTED)), (name, variant)
    assert by_name["n2g_silent_share", ""].value == 0
    content = json.loads(json.dumps(_measured(found).files["n2g.json"]))
    for trie, (_, tokens, at_start) in zip(load_tries(content).values(), PLANTED.values(), strict=True):
        found_nodes = [(node.token, node.at_start, node.parent, bool(node.n)) for node in trie.nodes]
        wanted = Trie.of([Pattern(tokens, at_start, 1.0)]).nodes
        assert found_nodes == [(node.token, node.at_start, node.parent, bool(node.n)) for node in wanted]
        assert {round(node.sum / node.n, 5) for node in trie.nodes if node.n} == {1.0}


def test_companions_change_nothing(tmp_path: Path) -> None:
    tokens = random_tokens(tmp_path / "t.u16", n_contexts=2000)
    one, other = SubjectSae(1, "1", planted_sae(DIMENSIONS)), SubjectSae(2, "2", planted_sae(DIMENSIONS[:2]))
    options = N2gOptions(build_tokens=16_000)
    alone = [*measure([one], context_of(stand_in(), tokens, tmp_path / "a"), options)]
    together = [*measure([other, one], context_of(stand_in(), tokens, tmp_path / "b"), options)]
    here, there = _measured(together[1]), _measured(alone[0])
    assert [score.told() for score in here.scores] == [score.told() for score in there.scores]
    assert here.files == there.files


def test_a_latent_that_is_never_active_is_counted_and_in_no_mean(tmp_path: Path) -> None:
    context = context_of(stand_in(), random_tokens(tmp_path / "t.u16", n_contexts=2000), tmp_path / "store")
    silent = [token(A), token(B)]  # one position holds no two tokens
    (found,) = measure(
        [SubjectSae(1, "1", planted_sae([[token(A)], silent]))], context, N2gOptions(build_tokens=16_000)
    )
    by_name = _by_name(list(_measured(found).scores))
    assert (by_name["n2g_f1", ""].value, by_name["n2g_f1", ""].n) == (1.0, 1)
    assert (by_name["n2g_f1", "all"].value, by_name["n2g_f1", "all"].n) == (0.5, 2)
    assert by_name["n2g_silent_share", ""].value == 0.5


def test_the_process_can_be_told_to_end_within_a_search(tmp_path: Path) -> None:
    phases = []

    def progress(phase: str, share: float) -> None:
        phases.append(phase)
        assert 0 <= share <= 1
        if "patterns" in phase:
            raise KeyboardInterrupt

    tokens = random_tokens(tmp_path / "t.u16", n_contexts=2000)
    context = context_of(stand_in(), tokens, tmp_path / "store", progress=progress)
    with pytest.raises(KeyboardInterrupt):
        next(iter(measure([SubjectSae(1, "1", planted_sae(DIMENSIONS))], context, N2gOptions(build_tokens=16_000))))
    assert set(phases) == {"reading text before the held-out part", "n2g: latents of 1", "n2g: patterns of 1"}


def test_a_bos_is_no_part_of_a_pattern(tmp_path: Path) -> None:
    """Behind a BOS the first token of a document is at the second position, and is still told as the first."""
    tokens = random_tokens(tmp_path / "t.u16", n_contexts=3000, bos=0)
    context = context_of(stand_in(), tokens, tmp_path / "store", heldout_tokens=8000)
    behind_bos = [token(0, back=1)]
    (found,) = measure(
        [SubjectSae(1, "1", planted_sae([behind_bos, [token(A)]]))], context, N2gOptions(build_tokens=16_000)
    )
    assert _by_name(list(_measured(found).scores))["n2g_f1", ""].value == 1
    tries = load_tries(_measured(found).files["n2g.json"])
    assert [(node.token, node.at_start) for node in tries[0].nodes] == [(None, True)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neo", "opt"])
@pytest.mark.parametrize("bos", [None, 0])
def test_a_batch_gives_what_single_texts_give(family: str, bos: int | None, tmp_path: Path) -> None:
    subject = load(SubjectConfig(model=str(save_model(family, tmp_path)), layer=1))
    random = torch.Generator().manual_seed(0)
    sae = planted_sae([[0], [1], [2]])
    tensors = {"W_enc": torch.randn(subject.d_model, 3, generator=random), "b_enc": torch.full((3,), 5.0)}
    tensors |= {"W_dec": torch.eye(3, subject.d_model), "b_dec": torch.zeros(subject.d_model)}
    facts = {**sae.facts.as_json(), "d_model": subject.d_model}
    sae = type(sae)(type(sae.facts).from_json(facts), tensors)
    chance = np.random.default_rng(0)
    texts = [chance.integers(2, 64, n) for n in (1, 9, 2, 30, 4, 4)]
    latents = np.array([0, 1, 2, 0, 1, 2])
    short = ShortTexts(subject, sae, bos=bos, on_progress=lambda share: None)
    together = short.activations(texts, latents, share=0.0)
    before = [] if bos is None else [bos]
    for text, latent, value in zip(texts, latents, together, strict=True):
        x = capture(subject, torch.tensor([[*before, *text]]))[0, -1]
        assert value == pytest.approx(float(sae.encode(x)[latent]), abs=1e-4)


def _predicted(trie: Trie, *rows: list[int], first: int = 0) -> list[float]:
    text = IndexedText(np.array(rows), first)
    values = np.zeros(text.flat.shape)
    found = trie.predict(text)
    values[found.positions] = found.values
    assert (np.diff(found.positions) > 0).all()
    return [float(value) for value in values]


def test_the_first_leaf_behind_the_token_gives_the_value() -> None:
    trie = Trie.of([Pattern((1, 5), False, 2.0), Pattern((None, 5), False, 3.0), Pattern((7,), False, 4.0)])
    assert _predicted(trie, [1, 5, 2, 5, 7]) == [0, 2, 0, 3, 4]
    trie.insert(Pattern((9, 7), False, 1.0))  # never reached: 7 alone is a leaf
    assert _predicted(trie, [9, 7]) == [0, 4]


def test_the_very_token_is_preferred_and_no_step_is_taken_back() -> None:
    trie = Trie.of([Pattern((1, 2, 5), False, 2.0), Pattern((3, None, 5), False, 3.0)])
    assert _predicted(trie, [1, 2, 5, 3, 4, 5]) == [0, 0, 2, 0, 0, 3]
    assert _predicted(trie, [3, 2, 5]) == [0, 0, 0]  # 2 is followed to 1, which is not there


def test_patterns_at_the_start_and_the_end_of_a_context() -> None:
    trie = Trie.of([Pattern((5,), True, 2.0), Pattern((1, 6), False, 3.0)])
    assert _predicted(trie, [5, 5, 1], [6, 1, 6]) == [2, 0, 0, 0, 0, 3]  # no pattern reaches into the context before
    assert _predicted(trie, [0, 5, 5], first=1) == [0, 2, 0]


def test_equal_patterns_predict_their_mean_and_a_file_keeps_them() -> None:
    trie = Trie.of([Pattern((5,), False, 2.0), Pattern((5,), False, 4.0), Pattern((None,) * 2000, False, 1.0)])
    assert _predicted(trie, [5]) == [3]
    again = Trie.from_json(json.loads(json.dumps(trie.as_json())))
    assert again == trie


@pytest.mark.parametrize("content", [{}, {"format": 2, "latents": {}}, {"format": 1, "latents": []}])
def test_another_file_is_refused(content: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="no file of N2G patterns"):
        load_tries(content)


@pytest.mark.parametrize("rows", [[[1, False, 0, 0.0, 0]], [[1, False]], [["x", False, -1, 0, 0]], 3])
def test_a_damaged_trie_is_refused(rows: list[list[object]]) -> None:
    with pytest.raises(ConfigError, match="no trie"):
        load_tries({"format": 1, "latents": {"3": {"trie": rows}}})


def test_activations_are_drawn_evenly_and_each_latent_by_itself() -> None:
    positions = np.arange(1000, dtype=np.int32)
    both = Firings(np.tile(positions, 2), np.repeat([0, 1], 1000).astype(np.int32), np.ones(2000, dtype=np.float32))
    drawn = draw(both, np.array([3, 8]), 16, seed=0)
    assert np.bincount(drawn.slots).tolist() == [16, 16]
    assert len(np.intersect1d(drawn.by_slot(2)[0].positions, drawn.by_slot(2)[1].positions)) < 8
    alone = draw(both.by_slot(2)[1]._replace(slots=np.zeros(1000, dtype=np.int32)), np.array([8]), 16, seed=0)
    assert alone.positions.tolist() == drawn.by_slot(2)[1].positions.tolist()
    counts = np.zeros(1000)
    for seed in range(2000):
        counts[draw(both.by_slot(2)[0], np.array([3]), 16, seed=seed).positions] += 1
    assert counts.mean() == 32
    assert counts.std() == pytest.approx(32**0.5, rel=0.1)  # as drawn at random
    assert abs(np.corrcoef(counts, positions)[0, 1]) < 0.1
    few = draw(both.chosen(np.arange(5)), np.array([3, 8]), 16, seed=0)
    assert sorted(few.positions.tolist()) == [0, 1, 2, 3, 4]


def test_patterns_that_predict_all_reconstruct_all(tmp_path: Path) -> None:
    """Simulated latents are the true ones, so that the model loses by them what it loses by the SAE."""
    context = context_of(stand_in(), random_tokens(tmp_path / "t.u16", n_contexts=2000), tmp_path / "store")
    every_token = SubjectSae(1, "1", planted_sae([[token(number)] for number in range(2, VOCABULARY, 2)]))
    (found,) = measure([every_token], context, N2gOptions(build_tokens=16_000, reconstruct=True, latents=2))
    (true,) = downstream.measure([every_token], context, None)
    by_name, wanted = _by_name(list(_measured(found).scores)), _by_name(list(_measured(true).scores))
    for metric in ("delta_ce", "kl"):
        assert wanted[metric, ""].value != pytest.approx(0, abs=0.001)
        assert by_name[metric, "n2g"][1] == pytest.approx(wanted[metric, ""].value, abs=1e-5)
        assert by_name[metric, "n2g"].n == wanted[metric, ""].n
    assert by_name["delta_ce", "bigram"].n == wanted["delta_ce", ""].n


def test_each_latent_is_rescaled_by_the_best_factor() -> None:
    true = Firings(np.array([1, 3, 4], np.int32), np.zeros(3, np.int32), np.array([2, 6, 5], np.float32))
    predicted = Predicted(np.array([0, 1, 3]), np.array([1.0, 1.0, 2.0]))
    everything = np.ones(5, dtype=np.bool_)
    assert scale(predicted, true, everything) == pytest.approx((2 + 12) / (1 + 1 + 4))
    everything[0] = False
    assert scale(predicted, true, everything) == pytest.approx((2 + 12) / (1 + 4))
    assert scale(Predicted(predicted.positions[:0], predicted.values[:0]), true, everything) == 0


def test_a_bigram_model_gives_probabilities_that_sum_to_1() -> None:
    counts = BigramCounts(torch.tensor([[0, 1, 0, 1], [0, 2, 2, 0]]), 4)
    for first in range(4):
        pairs = torch.tensor([[first, second] for second in range(4)])
        assert counts.losses(pairs).neg().exp().sum() == pytest.approx(1, abs=1e-6)
    # 0 is followed by 1, 1, 2 and 3 times by anything; c(1) = 2 of 8 tokens, plus 1 of 4.
    assert counts.losses(torch.tensor([[0, 1]])).neg().exp() == pytest.approx((2 - 0.75) / 3 + 0.75 * 2 / 3 * 3 / 12)


def test_sizes_of_the_stand_in() -> None:
    """The rules of these tests: one that the model could not read, or a token it lacks, would prove nothing."""
    assert max(A, B, C) < VOCABULARY
    assert stand_in().max_context == CONTEXT


class Fires(ShortTexts):
    """A latent that is a function of the tokens, in place of a model and an SAE."""

    longest = None

    def __init__(self, value: Callable[[list[int]], float]) -> None:
        self._value = value

    def activations(self, texts: Sequence[Tokens], latents: NDArray[np.int64], *, share: float) -> NDArray[np.float32]:
        return np.array([self._value(text.tolist()) for text in texts], dtype=np.float32)


def _learned(value: Callable[[list[int]], float], *documents: list[int]) -> Trie:
    """Return the patterns of a function from documents at whose last token it is active."""
    examples = [Example(0, np.array(document), value(document)) for document in documents]
    return Trie.of(find_patterns(Fires(value), examples, N2gOptions(), pad=0))


def test_the_toy_cases_of_the_released_code() -> None:
    """Fixture G8: a token, and a token after an earlier one; of its third text, a c d, what ends where it is active."""
    a, b, c, e = 1, 2, 3, 5
    is_c = _learned(lambda text: float(text[-1] == c), [a, b, c], [b, a, c])
    assert _predicted(is_c, [b, c]) == [0, 1]
    assert _predicted(is_c, [c, b, c]) == [1, 0, 1]
    after_a = _learned(lambda text: float(text[-1] == c and a in text[:-1]), [a, b, c], [b, a, c], [a, c])
    assert _predicted(after_a, [a, c]) == [0, 1]
    assert _predicted(after_a, [a, e, c]) == [0, 0, 1]
    assert _predicted(after_a, [a, b, b, c]) == [0, 0, 0, 0], "a wildcard stands for one token: a known limit"
