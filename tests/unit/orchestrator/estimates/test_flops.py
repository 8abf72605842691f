"""Costs follow the formulas of numerics 5, and a width is read where it stands."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import SubjectConfig
from orchestrator.config.validation import parse
from orchestrator.estimates import subject_files
from orchestrator.estimates.flops import Cost, estimate, hook_width, known_width
from orchestrator.estimates.subject_files import SHIPPED_FOLDER

TRAINING = {"max_tokens": 1_000_000, "dead_after_tokens": 400_000}


def test_a_model_s_files_are_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_files, "_MOST_HEADER", 100)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    assert known_width(SubjectConfig(model=str(tmp_path))) == 64
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "more": "x" * 100}))
    assert known_width(SubjectConfig(model=str(tmp_path))) is None


def test_by_hand() -> None:
    cost = estimate(parse({"sae": {"n_latents": 1000, "k": 10, "k_aux": 5}, "training": TRAINING}), 100)
    assert cost.tokens == 1_000_000
    assert cost.flops_dense == 12 * 1000 * 100 * 1_000_000 + 6 * 1000 * 100 * 600_000
    assert cost.flops_executed == (2 * 1000 + 8 * 10) * 100 * 1_000_000 + 8 * 5 * 100 * 600_000


@pytest.mark.parametrize(
    "values",
    [
        {"sae": {"n_latents": 1000, "k": 10, "aux_coef": 0}, "training": TRAINING},
        {"sae": {"n_latents": 1000, "k": 10}, "training": TRAINING | {"dead_after_tokens": 2_000_000}},
    ],
)
def test_without_auxk(values: dict[str, Any]) -> None:
    assert estimate(parse(values), 100).flops_dense == 12e11
    assert estimate(parse(values), 100).flops_executed == (2 * 1000 + 80) * 100 * 1e6


def test_a_token_of_text_costs_a_vector_at_every_layer_that_is_read() -> None:
    def cost(**subject: Any) -> Cost:
        return estimate(parse({"subject": subject, "sae": {"n_latents": 1000, "k": 10}, "training": TRAINING}), 100)

    one, three, every = cost(layer=2), cost(layers=[0, 2, 5]), cost(layers="all")
    assert one.tokens == three.tokens == every.tokens
    assert one.flops_dense is not None
    assert one.flops_executed is not None
    assert (three.flops_dense, three.flops_executed) == (3 * one.flops_dense, 3 * one.flops_executed)
    assert every.flops_dense == 6 * one.flops_dense, "the shipped subject has six blocks"
    assert cost(model="not/here", layers="all").flops_dense is None
    assert cost(model="not/here", layers=[0, 1]).flops_dense == 2 * one.flops_dense


def test_activations_without_k_are_dense() -> None:
    cost = estimate(parse({"sae": {"n_latents": 1000, "activation": "relu", "aux_coef": 0}, "training": TRAINING}), 100)
    assert cost.flops_dense == cost.flops_executed == 12e11


def test_the_width_gives_the_size() -> None:
    cost = estimate(parse({"sae": {"expansion": 4}}), 128)
    assert (cost.d_model, cost.n_latents) == (128, 512)


def test_an_unknown_width() -> None:
    cost = estimate(parse({}), None)
    assert cost == (20_000_000, None, None, None, None)
    assert estimate(parse({"sae": {"n_latents": 64}}), None).n_latents == 64


@pytest.mark.parametrize(
    ("config", "width"),
    [
        ({"hidden_size": 2048}, 2048),
        ({"n_embd": 768}, 768),
        ({"d_model": 512}, 512),
        ({"text_config": {"hidden_size": 2304}}, 2304),
        ({"hidden_size": "2048"}, None),
        ({"hidden_size": True}, None),
        ({"hidden_size": 0}, None),
        ({}, None),
        ([], None),
    ],
)
def test_known_width(tmp_path: Path, config: Any, width: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert known_width(SubjectConfig(model=str(tmp_path))) == width


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_config_json_is_no_width(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert known_width(SubjectConfig(model=str(tmp_path))) is None


def test_what_is_not_a_folder_is_no_width(tmp_path: Path) -> None:
    assert known_width(SubjectConfig(model="openai-community/gpt2")) is None
    assert known_width(SubjectConfig(model=str(tmp_path / "nothing"))) is None


def test_the_shipped_model_is_found_beside_the_package() -> None:
    assert Path(__file__).parents[4] / "examples" / "subject" == SHIPPED_FOLDER


def test_the_width_at_the_hook_point(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_embd": 64}')
    model = str(tmp_path)
    assert hook_width(SubjectConfig(model=model)) == 64
    assert hook_width(SubjectConfig(model=model, site="mlp_delta")) == 64
    assert hook_width(SubjectConfig(model=model, site="mlp_post")) is None
    assert hook_width(SubjectConfig(model=model, hook="transformer.h.0.mlp.c_fc")) is None
