"""What is said of SAEs of several layers is what their scores say, planted so that parts hold, fail, and stay open."""

import math

import pytest

from orchestrator.scaling.across_layers import grouped, layers_told, told_apart
from orchestrator.scaling.layer_claims import Claim, beside_home, best_at_home, falling, flatter
from orchestrator.scaling.types import JobMeasurement
from tests.layer_scores import at_layers

SEEDS = (0, 1, 2)


def world(name: str = "fvu") -> list[JobMeasurement]:
    """SAEs of three layers and of each: flatter than that of layer 0, not than that of 2, near that of 1."""
    rows = []
    for seed in SEEDS:
        noise = 1 + 0.01 * seed
        rows += [
            at_layers((0, 1, 2), {name: [0.2, 0.25, 0.3 * noise]}, seed=seed),
            at_layers((0,), {name: [0.1, 0.5, 0.9 * noise]}, seed=seed),
            at_layers((1,), {name: [0.3, 0.2, 0.3 + 0.06 * (seed - 1)]}, seed=seed),
            at_layers((2,), {name: [0.5, 0.5, 0.48 - 0.001 * seed]}, seed=seed),
        ]
    return rows


def parts(claim: Claim) -> dict[tuple[int, ...], bool | None]:
    return {part.layers: part.holds for part in claim.parts}


def test_seeds_are_one_group_and_a_seed_that_comes_twice_is_not() -> None:
    groups = grouped(world())
    assert [group.trained_on for group in groups] == [(0, 1, 2), (0,), (1,), (2,)]
    assert [len(group.rows) for group in groups] == [3] * 4
    assert told_apart(groups) == ["layers 0–2", "layer 0", "layer 1", "layer 2"]
    twice = [*world(), at_layers((0,), {"fvu": [0.1, 0.5, 0.9]}, seed=0)]
    assert [len(group.rows) for group in grouped(twice)] == [3, 1, 1, 1, 1, 3, 3]
    assert len(set(told_apart(grouped(twice)))) == 7
    assert layers_told((0, 2, 5)) == "layers 0, 2, 5"


def test_a_score_over_seeds_has_the_interval_of_student_and_one_seed_its_own() -> None:
    (first, *_), (alone, *_) = grouped(world()), grouped(world()[:4])
    found = first.at("fvu", 2)
    assert found is not None
    reach = 2.919986 * 0.003 / math.sqrt(3)  # t of two degrees of freedom; the standard deviation of 0.3, 0.303, 0.306
    assert found == pytest.approx((0.303, 0.303 - reach, 0.303 + reach), abs=1e-6)
    assert alone.at("fvu", 2) == pytest.approx((0.3, 0.27, 0.33))
    assert first.at("fvu", 7) is None


def test_it_says_against_which_saes_they_are_flatter_and_against_which_not() -> None:
    (claim,) = flatter(grouped(world()))
    assert claim.metric == "fvu"
    assert parts(claim) == {(0,): True, (1,): None, (2,): False}
    assert [part.layers for part in claim.failing] == [(2,)]
    assert [part.layers for part in claim.open] == [(1,)]
    (of_one_seed,) = flatter(grouped(world()[:4]))
    assert all(math.isnan(part.value.low) and part.holds is not None for part in of_one_seed.parts)


def test_an_sae_is_the_best_at_home_or_not() -> None:
    (claim,) = best_at_home(grouped(world("kl")))
    assert parts(claim) == {(0,): True, (1,): True, (2,): False}, "at layer 2 that of layer 1 is lower"
    (beside,) = beside_home(grouped(world("kl")))
    assert parts(beside) == {(0,): False, (1,): False, (2,): True}
    ratio = {part.layers: part.value.value for part in beside.parts}
    assert ratio[0,] == pytest.approx(2.0)


def test_an_sae_is_no_rival_of_those_of_its_own_layer() -> None:
    rows = [*world("kl")[1:3], at_layers((0,), {"kl": [0.09, 0.5, 0.9]}, seed=0, sweep="again")]
    (claim,) = best_at_home(grouped(rows))
    assert [(part.layers, part.holds) for part in claim.parts] == [((0,), True), ((0,), True), ((1,), True)]


def test_saes_measured_at_other_layers_are_no_seeds_of_each_other_and_not_flatter() -> None:
    first, second = (at_layers((0, 1), {"fvu": [0.2, 0.3, *more]}, seed=len(more)) for more in ((), (0.9,)))
    single = at_layers((0,), {"fvu": [0.1, 0.5]})
    groups = grouped([first, second, single])
    assert [len(group.rows) for group in groups] == [1, 1, 1]
    assert told_apart(groups) == [
        "layers 0, 1, measured at layers 0, 1",
        "layers 0, 1, measured at layers 0–2",
        "layer 0, measured at layers 0, 1",
    ]
    assert flatter(grouped([second, at_layers((0,), {"fvu": [0.1, 0.5]}, seed=1)])) == [], "of other layers"
    (claim,) = flatter(groups)
    assert claim.groups[0].layers == (0, 1)


def test_others_of_another_size_text_or_lens_are_not_compared() -> None:
    rows = world()
    assert flatter(grouped([*rows[:1], at_layers((0,), {"fvu": [0.1, 0.5, 0.9]}, n=512)])) == []
    assert flatter(grouped([*rows[:1], at_layers((0,), {"fvu": [0.1, 0.5, 0.9]}, data="another")])) == []
    in_lens = at_layers((0,), {"fvu": [0.1, 0.5, 0.9]}, lens="mine")
    assert flatter(grouped([*rows[:1], in_lens])) == []
    assert told_apart(grouped([rows[1], in_lens])) == ["without a lens, layer 0", "in the space of mine, layer 0"]
    assert grouped([at_layers((0,), {"fvu": [0.1]})]) == [], "measured at one layer"


@pytest.mark.parametrize(("axis", "sizes"), [("n_latents", {"n": (64, 256, 1024)}), ("k", {"k": (4, 16, 64)})])
def test_what_they_cost_falls_with_an_exponent_at_each_layer_but_where_it_does_not(
    axis: str, sizes: dict[str, tuple[int, ...]]
) -> None:
    ((name, values),) = sizes.items()
    rows = [
        at_layers(
            (0, 1, 2),
            {"kl": [2 * size**-0.5, size ** -(0.2 + 0.01 * seed), size**0.1], "delta_ce": [1.0, -0.1, size**-1.0]},
            seed=seed, **{name: size},
        )
        for size in values
        for seed in SEEDS
    ]  # fmt: skip
    delta, kl = falling(grouped(rows), "k" if axis == "k" else "n_latents")
    assert (delta.metric, kl.metric) == ("delta_ce", "kl")
    assert parts(kl) == {(0,): True, (1,): True, (2,): False}
    assert [part.value.value for part in kl.parts] == pytest.approx([-0.5, -0.21, 0.1])
    assert parts(delta) == {(0,): None, (2,): True}, "no power law goes through what is negative"
    other = falling(grouped(rows), "n_latents" if axis == "k" else "k")
    assert other == []
