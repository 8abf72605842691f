"""When an SAE counts as what it should be: by what its files state, or by what a trained SAE can have."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.config.sae_facts import InputNormalization
from tests.made_saes import K, inputs, made
from worker.saes.verification import Found, clearly_better, measure, why_not


def found(*, fvu: float = 0.2, fvu_raw: float = 0.3, l0: float = K, untrained: float = 1.0, **stated: Any) -> Found:
    sae = made("topk")
    return Found("a", sae.changed({}, facts=replace(sae.facts, **stated)), fvu, fvu_raw, l0, untrained)


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (found(), ""),
        (found(fvu=1.0), "an untrained SAE of these sizes has 1.0000"),
        (found(fvu=0.999), ""),
        (found(fvu=float("nan")), "not finite"),
        (found(l0=0.79 * K), "k is 5"),
        (found(l0=0.81 * K), ""),
        (found(stated_l0=10.0, l0=8.1), ""),
        (found(stated_l0=10.0, l0=12.1), "its files state 10.0"),
        (found(stated_fvu=0.24, fvu=0.2, fvu_raw=0.9), ""),
        (found(stated_fvu=0.24, fvu=0.9, fvu_raw=0.2), ""),
        (found(stated_fvu=0.4, fvu=0.2, fvu_raw=0.25), "its files state 0.4000"),
        (found(stated_fvu=1.1, fvu=1.1), ""),
    ],
)
def test_what_is_stated_decides_and_else_what_a_trained_sae_can_have(one: Found, why: str) -> None:
    assert (why in why_not(one)) if why else why_not(one) == ""


def test_another_reading_is_clearly_better_below_nine_tenths_and_if_it_is_as_it_should_be() -> None:
    read = found(fvu_raw=0.5)
    near, better, wrong = found(fvu_raw=0.451), found(fvu_raw=0.449), found(fvu_raw=0.1, l0=40.0)
    assert clearly_better(read, [near, better, wrong]) == [better]


def test_what_is_measured_is_the_plain_formula() -> None:
    x, sae = inputs(3000).double().float(), made("topk", "unit")
    one = measure({"a": sae}, x)["a"]
    left = x - sae(x)
    centred = x - x.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    normal = centred / length
    assert one.fvu_raw == pytest.approx(float(left.square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4)
    spread = (normal - normal.mean(0)).square().sum()
    assert one.fvu == pytest.approx(float((left / length).square().sum() / spread), rel=1e-4)
    assert one.l0 == pytest.approx(float((sae.encode(x) > 0).float().sum(1).mean()))


@pytest.mark.parametrize("kind", ["none", "unit"])
def test_each_reading_is_held_against_an_untrained_sae_of_its_own_normalisation(kind: InputNormalization) -> None:
    x = inputs(3000)
    readings = {name: made("topk", name) for name in ("none", "unit")}
    together, alone = measure(readings, x)[kind], measure({kind: readings[kind]}, x)[kind]
    assert together.untrained == alone.untrained
    assert len({one.untrained for one in measure(readings, x).values()}) == 2
