"""One autoencoder on several processes is the same one: selection, losses, every gradient, curve, checkpoint."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.validation import parse
from orchestrator.curves.point import Point
from orchestrator.errors import ConfigError
from tests.sharded_cases import (
    CASES,
    LONG,
    N_PROCESSES,
    N_STEPS,
    PARAMETERS,
    Case,
    batch_of,
    config_of,
    long_config,
    long_data,
    run,
    state_of,
)
from worker.sae.dead_latents import count_by_layer, silent_tokens
from worker.sae.loss import losses, narrowed
from worker.sae.sharded.shard import Shard
from worker.sae.sharded.train_state import ShardedTrainState
from worker.sae.train_state import TrainState, train_step

ROOT = Path(__file__).parents[2]
EXACT = [case for case in CASES if case.encode_dtype == "float32"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-W", "error", "-m", "tests.sharded_cases", str(folder / "store")]
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(N_PROCESSES)
    ]
    try:
        said = [rank.communicate(timeout=200)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * N_PROCESSES, "\n".join(words[-1500:] for words in said)
    results: dict[str, dict[str, Any]] = torch.load(folder / "found.pt", weights_only=False)
    return results


def reference(case: Case) -> tuple[TrainState, dict[str, Any]]:
    """Return what the plain path finds for a case, by autograd."""
    config, state, x = config_of(case), state_of(case), batch_of(case)
    model = state.model
    encoded = model.encode(x, k=model.k_widest)
    narrow = narrowed(encoded, model.k)
    since = count_by_layer(narrow.top_acts, narrow.top_indices, state.tokens_since_fired)
    silent = silent_tokens(since) > state.dead_after_tokens
    dead = silent if silent.any() else None
    told = losses(model, x, encoded, config=config.sae, variances=state.variances, dead=dead)
    told.total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: getattr(model, name).grad for name in PARAMETERS}
    return state, {"encoded": encoded, "total": told.total, "aux": told.aux, "dead": dead, "gradients": gradients}


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_selection_is_the_plain_one(case: Case, found: dict[str, dict[str, Any]]) -> None:
    _, plain = reference(case)
    top_acts, top_indices = found[case.name]["encoded"]
    assert torch.equal(top_indices, plain["encoded"].top_indices)
    torch.testing.assert_close(top_acts, plain["encoded"].top_acts.detach(), rtol=1e-5, atol=1e-6)
    state = state_of(case)
    decoded = state.model.decode(top_acts, top_indices).detach()
    torch.testing.assert_close(found[case.name]["decoded"], decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_losses_and_every_gradient_are_the_plain_ones(case: Case, found: dict[str, dict[str, Any]]) -> None:
    _, plain = reference(case)
    ours = found[case.name]
    assert ours["was_active"] == (plain["dead"] is not None) == (case.dead != "none")
    for name in ("total", "aux"):
        torch.testing.assert_close(ours[name], plain[name].detach(), rtol=1e-5, atol=1e-6)
    assert (ours["aux"][0] > 0) == (case.dead != "none" and bool(plain["aux"][0] > 0))
    for name in PARAMETERS:
        wanted: Tensor = plain["gradients"][name]
        scale = float(wanted.abs().max())
        assert scale > 0
        torch.testing.assert_close(ours["gradients"][name], wanted, rtol=1e-4, atol=2e-6 * max(1, scale), msg=name)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.name)
def test_what_all_hold_is_alike_to_the_bit(case: Case, found: dict[str, dict[str, Any]]) -> None:
    copies = found[case.name]["alike"]
    assert len(copies) == case.size
    assert all(torch.equal(copies[0], other) for other in copies)


@pytest.mark.parametrize("case", [c for c in EXACT if not c.ties], ids=lambda case: case.name)
def test_a_step_leaves_the_plain_state(case: Case, found: dict[str, dict[str, Any]]) -> None:
    state, config, x = state_of(case), config_of(case), batch_of(case)
    train_step(state, x, config)
    after = found[case.name]["after"]
    assert list(after) == list(state.tensors())
    assert torch.equal(after["tokens_since_fired"], state.tokens_since_fired)
    for name, wanted in state.tensors().items():
        # Adam's first step is lr · sign(gradient) wherever a gradient is far above eps: 1e-10 is a rounding error here.
        torch.testing.assert_close(after[name], wanted, rtol=2e-4, atol=2e-5, msg=lambda text: f"{name}: {text}")  # noqa: B023
    ours, plain = found[case.name]["values"], state.values()
    assert ours == plain


def test_rounded_encoder_finds_what_the_plain_one_finds(found: dict[str, dict[str, Any]]) -> None:
    (case,) = (case for case in CASES if case.encode_dtype == "bfloat16")
    _, plain = reference(case._replace(encode_dtype="float32"))
    theirs = plain["encoded"].top_indices
    share = (found[case.name]["encoded"][1].unsqueeze(2) == theirs.unsqueeze(1)).any(2).double().mean()
    assert share > 0.98
    torch.testing.assert_close(found[case.name]["total"], plain["total"].detach(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("name", LONG)
def test_fifty_steps_give_the_same_curve_and_weights(name: str, found: dict[str, dict[str, Any]]) -> None:
    case, config = LONG[name], long_config(LONG[name])
    alone = run(TrainState.fresh(config, long_data(case, 256, seed=2)), config, case)
    assert alone.aux_tokens > 10 * config.training.batch_tokens
    check_curve(found[name]["curve"], alone.curve)
    for key, wanted in alone.tensors().items():
        if wanted.is_floating_point():
            torch.testing.assert_close(found[name]["tensors"][key], wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", LONG)
def test_begun_on_several_ended_on_one_and_the_reverse(name: str, found: dict[str, dict[str, Any]]) -> None:
    case, config = LONG[name], long_config(LONG[name])
    alone = run(TrainState.fresh(config, long_data(case, 256, seed=2)), config, case)
    tensors, values = found[name]["half"]
    assert values["tokens_seen"] == config.training.max_tokens // 2
    taken_up = TrainState.restored(config, tensors, values, device="cpu")
    check_curve(run(taken_up, config, case, steps=slice(N_STEPS // 2, None)).curve, alone.curve)
    check_curve(found[name]["second"], alone.curve)


def check_curve(ours: list[Point], plain: list[Point]) -> None:
    assert [point.tokens_seen for point in ours] == [point.tokens_seen for point in plain]
    for one, other in zip(ours, plain, strict=True):
        for field in ("fvu", "fvu_raw", "loss", "aux_loss", "grad_norm", "l0", "flops_executed"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-3, abs=1e-6), field
        assert one.dead_share == other.dead_share


def test_one_process_speaks_with_nobody() -> None:
    """Without any process group: a collective call would raise."""
    case = Case(37, 11, 5, 1, dead="some")
    config, x = config_of(case), batch_of(case)
    alone, plain = state_of(case), state_of(case)
    ours = ShardedTrainState.scatter(alone, config, shard=Shard(case.n), device="cpu")
    for state in (ours, plain):
        train_step(state, x, config)
    for name, wanted in plain.tensors().items():
        torch.testing.assert_close(ours.tensors()[name], wanted, rtol=2e-4, atol=2e-5)
    back = ours.whole()
    assert back.values() == ours.values()
    assert type(back) is TrainState


BROKEN_OFF = """
import os
from tests.sharded_cases import Case, batch_of, config_of, state_of
from worker.trainer import rank_processes

rank_processes._END_SECONDS = 2.0
case = Case(37, 11, 5, 2)
ours = rank_processes.RankProcesses(["cpu", "cpu"], threads=1, on_failure=print)
ours.divide(state_of(case), config_of(case), heldout=batch_of(case))
ours.end()  # the first measurement has failed here; there the others wait for our part
print([rank.child.returncode for rank in ours._ranks], flush=True)
os._exit(0)  # as the trainer ends
"""


def test_a_step_that_fails_on_the_first_device_alone_is_no_endless_wait() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN_OFF], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout.decode().strip() == str([-signal.SIGKILL])


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batchtopk"])
def test_other_activations_are_refused(activation: str) -> None:
    config = parse({"sae": {"activation": activation, "n_latents": 16, "k": 2}})
    with pytest.raises(ConfigError, match=activation) as caught:
        ShardedTrainState(config, 8, shard=Shard(16, 0, 2))
    assert "one device" in caught.value.hint


def test_fewer_latents_than_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_latents = 2 cannot be divided among 3"):
        Shard(2, 0, 3)


def test_every_latent_has_one_owner() -> None:
    for n in (3, 37, 64):
        for size in (1, 2, 3):
            bounds = Shard(n, 0, size).bounds
            assert [i for first, end in bounds for i in range(first, end)] == list(range(n))
            assert max(end - first for first, end in bounds) - min(end - first for first, end in bounds) <= 1
