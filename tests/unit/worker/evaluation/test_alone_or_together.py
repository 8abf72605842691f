"""Scores of an SAE are the same whichever SAEs it is measured with, and on a second attempt."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from orchestrator.config.evaluation.ablation import ABLATION_VARIANTS, AblationOptions
from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.evaluation.families import Family
from orchestrator.config.evaluation.n2g import N2gOptions
from orchestrator.config.evaluation.probes import ProbesOptions, ProbeTask
from orchestrator.config.evaluation.structure import StructureOptions
from orchestrator.config.job import Part
from tests.unit.worker.evaluation.probes.small_context import context_of
from tests.unit.worker.evaluation.probes.test_family import table
from tests.unit.worker.evaluation.tiny_contexts import entries, random_sae, tiny_context
from worker.evaluation import registry
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, SubjectSae
from worker.sae.inference import InferenceSae

OPTIONS: dict[str, Part | None] = {
    "reconstruction": None,
    "downstream": DownstreamOptions(refined=True, test_k=(2,), replaced_apart=True, random_error=True),
    "structure": StructureOptions(),
    "ablation": AblationOptions(pairs=64, affected_tokens=4, variants=ABLATION_VARIANTS),
    "n2g": N2gOptions(latents=10, build_tokens=200, reconstruct=True),
    "probes": None,
}


def saes(d_model: int) -> list[SubjectSae]:
    topk = random_sae(d_model, seed=3)
    relu = InferenceSae(replace(topk.facts, selection="relu", k=None), topk.tensors())
    return entries(random_sae(d_model, seed=1), random_sae(d_model, seed=2, normalize="layer_norm", n_latents=40), relu)


@torch.no_grad()
def scores(of: list[SubjectSae], family: str, folder: Path) -> dict[int, list[str]]:
    """Measure some SAEs; return all scores of each, every bit."""
    folder.mkdir(exist_ok=True)
    context: EvaluationContext = context_of(folder) if family == "probes" else tiny_context(folder)
    options = OPTIONS[family]
    if family == "probes":
        task = ProbeTask(source=str(table(folder / "table.csv")))
        options = ProbesOptions(tasks=(task,), random_directions=8, bootstraps=50)
    found = [*registry.family(cast(Family, family))(of, context, options)]
    assert all(isinstance(one, Measured) for one in found)
    return {one.job_id: [repr(score) for score in one.scores] for one in found if isinstance(one, Measured)}


@pytest.mark.parametrize("family", OPTIONS)
def test_scores_do_not_depend_on_the_company(tmp_path: Path, family: str) -> None:
    own = saes(128 if family == "probes" else 16)
    together = scores(own, family, tmp_path / "together")
    assert len(together) == 3
    assert scores(own, family, tmp_path / "together") == together, "a second attempt, from what the first one kept"
    for one in reversed(own):
        assert scores([one], family, tmp_path / "alone") == {one.job_id: together[one.job_id]}
