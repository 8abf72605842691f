"""A sweep file that the program writes gives back the configs it was written from."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.sweep import expand
from orchestrator.sweep.sweep import Limits, Sweep
from orchestrator.sweep.written import sweep_text

CONFIGS = st.builds(
    lambda n, k, lr, seed, tokens, source, layer: parse(
        {"sae": {"n_latents": n, "k": min(k, n)}, "optimizer": {"lr": lr}, "subject": {"layer": layer},
         "training": {"seed": seed, "max_tokens": tokens}, "data": {"source": source}}
    ),
    st.integers(1, 2**40), st.integers(1, 2**20), st.one_of(st.just("auto"), st.floats(1e-12, 1e12)),
    st.integers(0, 99), st.integers(2048, 2**50), st.sampled_from(["python:stdlib", "a: b # c", "é\"'", "null"]),
    st.one_of(st.none(), st.integers(0, 9)),
)  # fmt: skip


def _again(sweep: Sweep, folder: Path, **more: list[str]) -> Sweep:
    file = folder / "written.yaml"
    file.write_text(sweep_text(sweep, **more), "utf-8")
    return expand(file)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CONFIGS, min_size=1, max_size=5, unique_by=lambda config: config.config_id))
def test_the_same_configs_come_back(tmp_path: Path, configs: list[JobConfig]) -> None:
    again = _again(Sweep("s", tuple(configs)), tmp_path, head=["from: a # test"], remarks=["why: 1"] * len(configs))
    assert again.configs == tuple(configs)
    assert [config.config_id for config in again.configs] == [config.config_id for config in configs]


def test_labels_and_limits_are_kept(tmp_path: Path) -> None:
    sweep = Sweep("s.1", (parse({}),), labels={"project": "é: x"}, limits=Limits(max_parallel=2, max_failures=5))
    again = _again(sweep, tmp_path)
    assert (again.name, again.labels, again.limits) == (sweep.name, sweep.labels, sweep.limits)


@pytest.mark.parametrize("remark", ["short", "long " * 40])
def test_a_remark_stands_beside_or_above_its_point(remark: str) -> None:
    text = sweep_text(Sweep("s", tuple(parse({"sae": {"k": k}}) for k in (4, 8))), remarks=[remark, ""])
    line = next(line for line in text.splitlines() if "sae.k: 4" in line)
    assert ("#" in line) == (len(remark) < 10)
    assert f"# {remark}".strip() in text
