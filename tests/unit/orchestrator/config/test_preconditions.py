"""What a metric family cannot measure is said before anything is queued: of an SAE, and of those of a sweep file."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef
from orchestrator.config.evaluation.of_sae import evaluation_of
from orchestrator.config.evaluation.reading import parse_plan
from orchestrator.config.job import JobConfig
from orchestrator.config.job_sae_facts import job_sae_facts
from orchestrator.config.model_fit import ModelSizes
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError, SubjectError
from orchestrator.estimates.subject_files import SHIPPED_FOLDER
from orchestrator.sweep import check_evaluation, expand_text

SYNTHETIC: dict[str, Any] = {"subject": {"model": "synthetic:gaussian?d_model=8"}, "sae": {"n_latents": 64, "k": 4}}
SEVERAL: dict[str, Any] = {"subject": {"layers": [0, 2]}, "sae": {"n_latents": 64, "k": 4}}
ONE: dict[str, Any] = {"subject": {"layer": 3}, "sae": {"n_latents": 64, "k": 4}}
SMALL = ModelSizes(6, 4096)
REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (ONE, {"metrics": ["layers"]}, r"layers: it reads layer 3 alone"),
    (ONE, {"metrics": ["reconstruction", "layers"], "at_layers": "all"}, r"layers: it reads layer 3 alone"),
    (SEVERAL, {"metrics": ["layers"], "at_layers": [2]}, r"layers: it is measured at one layer"),
    (SEVERAL, {"at_layers": [0, 6]}, r"at_layers = \[0, 6\], and .* has 6 blocks, counted from 0"),
    (ONE, {"at_layers": [6]}, r"at_layers = 6, and .* has 6 blocks, counted from 0"),
    (
        {**SEVERAL, "sae": {**SEVERAL["sae"], "lens": "a" * 64}}, {"metrics": ["layers"]},
        r"layers: it reads the space of a tuned lens",
    ),
    (ONE, {"metrics": ["n2g"], "n2g": {"latents": [3, 64]}}, r"n2g.latents names 64, and .* latents 0 to 63"),
    (ONE, {"metrics": ["n2g"], "n2g": {"pad_token": 4096}}, r"n2g.pad_token = 4096, and the model knows 4096 tokens"),
    (ONE, {"metrics": ["explanation"]}, r"explanation: .* has no explainer"),
    (
        ONE, {"metrics": ["explanation"], "explanation": {"command": ["a"], "latents": [64]}},
        r"explanation.latents names 64",
    ),
    (ONE, {"metrics": ["ablation"], "ablation": {"affected_tokens": 129}}, r"contexts have 128 tokens: no position"),
    (
        {**ONE, "data": {"prepend_bos": True}}, {"metrics": ["ablation"], "ablation": {"affected_tokens": 128}},
        r"contexts have 128 tokens: no position",
    ),
    *(
        (SYNTHETIC, {"metrics": ["reconstruction", family]}, rf"{family}: synthetic\S+ is no language model")
        for family in ("downstream", "probes", "n2g", "ablation", "explanation", "layers")
    ),
]  # fmt: skip
ALLOWED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (SEVERAL, {"metrics": ["layers"]}),
    (SEVERAL, {"metrics": ["layers"], "at_layers": "all"}),
    (ONE, {"metrics": ["n2g", "ablation"], "n2g": {"latents": [0, 63], "pad_token": 4095}, "at_layers": [5]}),
    (ONE, {"metrics": ["ablation"], "ablation": {"affected_tokens": 128}}),
    (ONE, {"metrics": ["downstream"], "n2g": {"latents": [64]}}),
    (SYNTHETIC, {"metrics": ["reconstruction", "structure"]}),
]


def ask(trained: dict[str, Any], plan: dict[str, Any], sizes: ModelSizes = SMALL) -> None:
    config: JobConfig = parse(trained)
    facts = job_sae_facts(config.model_dump(mode="json"), {"subject": {"n_layers": sizes.n_blocks}}, d_model=8)
    evaluation_of(parse_plan(plan), EvaluatedSaeRef(id=1), facts, config, lambda _: sizes)


@pytest.mark.parametrize(("trained", "plan", "said"), REFUSED)
def test_what_a_family_cannot_measure_is_refused(trained: dict[str, Any], plan: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, SubjectError), match=said) as caught:
        ask(trained, plan)
    assert caught.value.hint


@pytest.mark.parametrize(("trained", "plan"), ALLOWED)
def test_what_it_can_is_not(trained: dict[str, Any], plan: dict[str, Any]) -> None:
    ask(trained, plan)


def test_of_a_model_that_is_not_here_its_sizes_are_left_to_the_worker() -> None:
    ask(ONE, {"metrics": ["n2g"], "n2g": {"pad_token": 10**6}, "at_layers": [60]}, ModelSizes())
    with pytest.raises(SubjectError, match="has one block"):
        ask(SEVERAL, {"metrics": ["layers"]}, ModelSizes(1))


def sweep(evaluate: str, grid: str = "") -> str:
    overrides = "  sae.k: 4\n  data.context_length: 64\n"
    blocks = f"sweep:\n  - grid: {{{grid}}}\n" if grid else ""
    return f"version: 1\nname: s\noverrides:\n{overrides}{blocks}evaluate: {evaluate}\n"


@pytest.mark.parametrize(
    ("evaluate", "grid", "said"),
    [
        ("[layers]", "", "layers: it reads layer 4 alone"),
        ("[reconstruction, layers]", "subject.layer: [0, 5]", "layers: it reads layer 0 alone"),
        ("{metrics: [downstream], at_layers: [9]}", "", "at_layers = 9, and .* has 6 blocks"),
        ("{metrics: [n2g], n2g: {latents: [1024]}}", "", "n2g.latents names 1024, and the SAE has latents 0 to 1023"),
        ("[explanation]", "", "has no explainer"),
        ("{metrics: [ablation], ablation: {affected_tokens: 65}}", "", "contexts have 64 tokens"),
    ],
)  # fmt: skip
def test_a_sweep_whose_saes_cannot_be_measured_so_is_refused(evaluate: str, grid: str, said: str) -> None:
    """Of the model that ships, whose files are here."""
    with pytest.raises(ConfigError, match=f"evaluate: an SAE of this sweep cannot be measured: .*{said}"):
        check_evaluation(expand_text(sweep(evaluate, grid), Path("s.yaml")))


def test_a_sweep_whose_saes_can_be_is_not(tmp_path: Path) -> None:
    assert SHIPPED_FOLDER.is_dir()
    check_evaluation(expand_text(sweep("[layers]", "subject.layers: [all]"), tmp_path / "s.yaml"))
    away = f"{sweep('{metrics: [n2g], n2g: {latents: [9999]}}')}".replace(
        "  sae.k", "  subject.model: org/away\n  sae.k"
    )
    check_evaluation(expand_text(away, tmp_path / "s.yaml"))
