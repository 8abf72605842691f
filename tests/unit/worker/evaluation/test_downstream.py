"""Downstream loss against forward passes written out, on tiny random models."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.sites import SITES
from tests.full_disk import files_of_at_most
from tests.unit.worker.evaluation.tiny_contexts import (
    LENGTH,
    constant_sae,
    entries,
    identity_sae,
    random_sae,
    tiny_context,
)
from worker.evaluation.bootstrap import ContextBootstrap, ratio
from worker.evaluation.clean_pass import CleanPass
from worker.evaluation.context import EvaluationContext
from worker.evaluation.downstream import measure
from worker.evaluation.downstream.loss_table import PATCHED, measure_patch, position_groups
from worker.evaluation.metric import Measured, NotMeasured, Score
from worker.evaluation.token_losses import WholeLogits
from worker.sae.inference import InferenceSae
from worker.subject.model import run_patched

Found = dict[tuple[str, str], Score]


def scores(context: EvaluationContext, sae: InferenceSae, **options: Any) -> Found:
    (found,) = measure(entries(sae), context, DownstreamOptions(**options))
    assert isinstance(found, Measured), found
    assert len({(s.metric, s.variant) for s in found.scores}) == len(found.scores)
    return {(s.metric, s.variant): s for s in found.scores}


def written_out(context: EvaluationContext, replacement: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
    """Return ce and kl of every token that counts, from whole forward passes of single contexts in float64."""
    subject, text = context.model()
    found: dict[str, list[Tensor]] = {"ce": [], "kl": [], "position": []}
    for ids, mask in zip(text.heldout.ids, text.heldout.is_measured, strict=True):
        clean = subject.model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
        kept = ~mask[None, :, None]
        patched = run_patched([subject], ids[None], [partial(_replaced, kept, replacement)])[0].double().log_softmax(-1)
        counted = mask[:-1].nonzero()[:, 0]
        found["ce"].append(-patched[counted, ids[counted + 1]])
        found["kl"].append((clean.exp() * (clean - patched)).sum(-1)[counted])
        found["position"].append(counted)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _replaced(kept: Tensor, replacement: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.where(kept, x, replacement(x))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("site", SITES)
def test_scores_are_those_of_whole_forward_passes(tmp_path: Path, family: str, site: str) -> None:
    context = tiny_context(tmp_path, family=family, site=site)
    sae = random_sae(context.model()[0].d_model)
    found = scores(context, sae)
    clean, patched = written_out(context, lambda x: x), written_out(context, sae)
    zero = written_out(context, torch.zeros_like)
    mean = context.vectors.mean(0)
    at_mean = written_out(context, lambda x: mean.expand_as(x))
    ce = {name: float(one["ce"].mean()) for name, one in
          (("clean", clean), ("patched", patched), ("zero", zero), ("mean", at_mean))}  # fmt: skip
    wanted = {
        ("delta_ce", ""): ce["patched"] - ce["clean"],
        ("delta_ce", "zero ablation"): ce["zero"] - ce["clean"],
        ("delta_ce", "mean ablation"): ce["mean"] - ce["clean"],
        ("ce_clean", ""): ce["clean"],
        ("ce_zero", ""): ce["zero"],
        ("ce_mean", ""): ce["mean"],
        ("kl", ""): float(patched["kl"].mean()),
        ("kl_zero", ""): float(zero["kl"].mean()),
        ("recovered_ce", ""): (ce["zero"] - ce["patched"]) / (ce["zero"] - ce["clean"]),
        ("recovered_kl", ""): 1 - float(patched["kl"].mean() / zero["kl"].mean()),
    }
    for name, is_in in position_groups(LENGTH - 1).items():
        rows = is_in[patched["position"]]
        if name and bool(rows.any()):
            wanted["kl", name] = float(patched["kl"][rows].mean())
            wanted["delta_ce", name] = float((patched["ce"] - clean["ce"])[rows].mean())
            assert found["kl", name].n == int(rows.sum())
    for key, value in wanted.items():
        assert found[key].value == pytest.approx(value, rel=2e-4, abs=2e-5), key
    assert found["delta_ce", ""].n == len(patched["ce"])
    assert found["identity", ""].value < 1e-5


def test_a_perfect_reconstruction_costs_nothing(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    law = {"e": 0.5, "alpha": 0.3}
    found = scores(context, identity_sae(16), compute_law=law, compute_curve=((1.0, 6.0), (10.0, 5.0), (100.0, 0.1)))
    for metric in ("delta_ce", "kl"):
        assert abs(found[metric, ""].value) < 1e-6
        assert abs(found[metric, "rest"].value) < 1e-6
    assert found["fvu", "raw, rest"].value < 1e-12
    for metric, variant in (("recovered_ce", ""), ("recovered_kl", ""), ("recovered_ce", "mean")):
        assert found[metric, variant].value == pytest.approx(1, abs=1e-5)
    for way in ("checkpoints", "family"):
        assert found["compute_equivalent", way].value == pytest.approx(1, abs=1e-4)
    assert found["compute_equivalent", "checkpoints"].details == {"is_within_curve": True}
    assert found["compute_equivalent", "family"].details == law


def test_compute_equivalents_follow_the_losses(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    sae = random_sae(16)
    table = tuple((float(c), 0.5 + 6 * float(c) ** -0.3) for c in (1, 10, 100, 1000))
    found = scores(context, sae, compute_law={"table": table}, compute_curve=((10.0, 4.3), (100.0, 4.25)))
    share = found["compute_equivalent", "family"]
    wanted = (found["ce_patched", ""].value - 0.5) / (found["ce_clean", ""].value - 0.5)
    assert share.value == pytest.approx(wanted ** (-1 / 0.3), rel=1e-3)
    assert share.low is not None
    assert share.high is not None
    assert share.low < share.value < share.high
    assert found["compute_equivalent", "checkpoints"].details == {"is_within_curve": False}


def test_the_mean_as_reconstruction_is_the_mean_baseline(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    found = scores(context, constant_sae(context.vectors.mean(0)))
    assert found["ce_patched", ""].value == pytest.approx(found["ce_mean", ""].value, abs=1e-6)
    assert found["recovered_kl", "mean"].value == pytest.approx(0, abs=1e-6)
    buckets = [score for (metric, variant), score in found.items() if metric == "fvu" and "=" in variant]
    assert sum(score.n or 0 for score in buckets) == found["fvu", "raw, rest"].n


def test_special_tokens_are_left_as_they_are_and_do_not_count(tmp_path: Path) -> None:
    context = tiny_context(tmp_path, prepend_bos=True)
    found = scores(context, random_sae(16), replaced_apart=True)
    assert ("kl", "first") not in found  # the BOS token
    assert found["kl", "first replaced"].value == 0
    _, text = context.model()
    assert not bool(text.heldout.is_measured[:, 0].any())
    assert found["kl", ""].n == int(text.heldout.is_measured[:, :-1].sum())


def test_every_sae_is_measured_as_alone(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    saes = [random_sae(16, seed=seed, normalize=kind) for seed, kind in enumerate(("none", "unit", "layer_norm"))]
    together = {one.job_id: one for one in measure(entries(*saes), context, DownstreamOptions())}
    for number, sae in enumerate(saes, start=1):
        (alone,) = measure(entries(sae), context, DownstreamOptions())
        one = together[number]
        assert isinstance(one, Measured)
        assert isinstance(alone, Measured)
        assert [score.told() for score in one.scores] == [score.told() for score in alone.scores]


def test_one_sae_that_cannot_be_measured_leaves_the_others(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    wide, endless, good = random_sae(17), random_sae(16), random_sae(16)
    endless.b_dec.data[0] = float("inf")
    coder = random_sae(16)
    coder = coder.changed({}, facts=replace(coder.facts, target_hook_point="mlp.out"))
    found = {one.job_id: one for one in measure(entries(wide, endless, good, coder), context, DownstreamOptions())}
    assert isinstance(found[3], Measured)
    for number, message in ((1, "17 dimensions"), (2, "not finite"), (4, "transcoder")):
        failed = found[number]
        assert isinstance(failed, NotMeasured)
        assert message in str(failed.error)


def test_other_k_at_test_time(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    sae = random_sae(16, k=4)
    found = scores(context, sae, test_k=(1, 4, 8, 25))
    again = scores(context, sae.changed({}, facts=replace(sae.facts, k=8)))
    for metric in ("delta_ce", "kl"):
        assert found[metric, "k=4"].value == found[metric, ""].value
        assert found[metric, "k=8"].value == again[metric, ""].value
    assert 0 < found["fvu", "k=4"].value < found["fvu", "k=1"].value
    again = scores(context, sae.changed({}, facts=replace(sae.facts, k=8)), test_k=(8,))
    assert found["fvu", "k=8"] == again["fvu", "k=8"]
    assert ("kl", "k=25") not in found
    assert found["delta_ce", ""].details == {"not_measured": {"k=25": "k = 25 does not fit 24 latents"}}
    gate = constant_sae(torch.zeros(16))
    jump = InferenceSae(replace(gate.facts, selection="jumprelu"), gate.tensors() | {"threshold": torch.ones(4)})
    assert "jumprelu" in scores(context, jump, test_k=(2,))["delta_ce", ""].details["not_measured"]["k=2"]


def test_a_random_error_has_the_length_of_the_saes_own(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    sae = random_sae(16)
    found = scores(context, sae, random_error=True, replaced_apart=True)
    assert found["kl", "random error"].value > 0
    assert found["kl", "random error"] == scores(context, sae, random_error=True)["kl", "random error"]
    first, plain = found["kl", "first replaced, first"], found["kl", "first"]
    assert first.value == pytest.approx(plain.value, rel=1e-4)  # nothing before it could differ
    assert found["kl", "rest replaced, first"].value == pytest.approx(0, abs=1e-6)
    assert found["kl", "first replaced, rest"].value > 0


def test_any_reconstruction_can_be_measured(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    sae = random_sae(16)
    clean = CleanPass(context)
    table = measure_patch(clean, lambda batch: sae(batch.activations))
    bootstrap = ContextBootstrap(len(clean.is_counted), context.generator("bootstrap"))
    found = scores(context, sae)
    assert [*table.scores(PATCHED, bootstrap)] == [found["delta_ce", ""], found["kl", ""]]


def test_the_clean_pass_is_computed_once_and_read_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = random_sae(16)
    first = scores(tiny_context(tmp_path), sae)
    monkeypatch.setattr(CleanPass, "_computed", lambda *_: pytest.fail("computed again"))
    assert scores(tiny_context(tmp_path), sae) == first


def test_predictions_that_do_not_fit_are_computed_for_each_use(tmp_path: Path) -> None:
    sae = random_sae(16)
    kept = scores(tiny_context(tmp_path), sae)
    size = sum(path.stat().st_size for path in tmp_path.glob("store/*/*"))
    small = replace(tiny_context(tmp_path), clean_pass_bytes=1000)
    assert not CleanPass(small).keeps_predictions
    assert scores(small, sae) == kept
    more = sum(path.stat().st_size for path in tmp_path.glob("store/*/*")) - size
    assert 0 < more < size / 4


def test_a_full_disk_costs_time_alone(tmp_path: Path) -> None:
    sae = random_sae(16)
    context = tiny_context(tmp_path)
    with files_of_at_most(2_000):
        found = scores(context, sae)
    assert context.store.refusal is not None
    assert "cannot write" in str(context.store.refusal)
    assert not [*tmp_path.glob("store/*/tensors.safetensors")] or len([*tmp_path.glob("store/*")]) <= 2
    assert scores(tiny_context(tmp_path), sae) == found


def test_it_ends_where_it_is_told_to(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []

    def progress(phase: str, share: float) -> None:
        told.append((phase, share))
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(measure(entries(random_sae(16), random_sae(16)), tiny_context(tmp_path, progress=progress), None))
    assert all(0 <= share <= 1 for _, share in told)


def test_intervals_cover_and_follow_the_contexts() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        of_context = torch.randn(40, 1, generator=generator)
        values = 1 + of_context + 0.1 * torch.randn(40, 64, generator=generator)
        sums = torch.stack([values.sum(1), torch.full((40,), 64.0)], dim=1)
        found = ContextBootstrap(40, generator)(sums).estimate(ratio)
        assert found.low is not None
        assert found.high is not None
        assert found.std_error == pytest.approx(1 / 40**0.5, rel=0.5)
        covered += found.low <= 1 <= found.high
    assert 165 <= covered <= 195  # of 200 at 90%: tokens drawn one by one would give about 30
    assert ContextBootstrap(1, generator)(torch.ones(1, 2)).estimate(ratio).low is None


def test_position_groups_divide_the_context() -> None:
    groups = position_groups(7)
    assert [*groups] == ["", "first", "rest", "positions=1", "positions=2-3", "positions=4-6"]
    buckets = torch.stack([is_in for name, is_in in groups.items() if "=" in name])
    assert torch.equal(buckets.sum(0), groups["rest"].long())


def test_losses_by_hand() -> None:
    logits = torch.tensor(np.log([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]), dtype=torch.float32)
    wanted = functional.cross_entropy(logits[0, :1], torch.tensor([1]))
    ids = torch.tensor([[2, 1]])
    clean = WholeLogits.predicted(logits, ids)
    assert clean["ce"].item() == pytest.approx(wanted.item())
    found = WholeLogits.losses(logits.flip(-1), ids, clean)
    assert found.kl.item() == pytest.approx(0.25 * np.log(2), abs=1e-6)  # 0.5·ln(0.5/0.25) + 0.25·ln(0.25/0.5)
    assert WholeLogits.losses(logits, ids, clean).kl.item() == 0
