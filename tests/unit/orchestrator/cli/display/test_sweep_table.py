"""What is said of a sweep as a whole is the sum of its jobs."""

from itertools import product

from orchestrator.cli.display.formats import scientific
from orchestrator.cli.display.sweep_table import SweepPlan, budget_notes, total_line
from orchestrator.config.job import JobConfig
from orchestrator.estimates.text_size import TextSize
from orchestrator.formatting import count

BUDGETS, SEEDS, TEXTS = (100_000, 300_000), (0, 1, 2), (TextSize(200_000, ""), None)


def plan() -> SweepPlan:
    """Jobs of which every seventh is in the queue already."""
    points = [
        ({"n_latents": n_latents}, {"max_tokens": budget, "seed": seed}, text)
        for n_latents, budget, seed, text in product((64, 128), BUDGETS, SEEDS, TEXTS)
    ]
    configs = [JobConfig.model_validate({"sae": sae, "training": training}) for sae, training, _ in points]
    new = [at % 7 != 0 for at in range(len(points))]
    return SweepPlan(configs, [None] * len(points), new, [text for *_, text in points])


def test_kinds_are_all_new_jobs_and_each_costs_as_its_first() -> None:
    jobs = plan()
    assert sum(number for _, number in jobs.kinds) == jobs.added
    assert len(jobs.kinds) == len(jobs) / len(SEEDS)
    flops = [job.cost.flops_dense for job in jobs.fresh()]
    tokens = sum(job.cost.tokens for job in jobs.fresh())
    assert total_line(jobs) == f"at most {count(tokens)} training tokens, {scientific(sum(filter(None, flops)))} FLOPs"


def test_notes_count_the_new_jobs_that_they_are_of() -> None:
    jobs = plan()
    said = [note.text for note in budget_notes(jobs) if "again and again" in note.text]
    again = sum(1 for job in jobs.fresh() if job.text and job.config.training.max_tokens == max(BUDGETS))
    assert said == [f"{again} of {jobs.added} jobs: {said[0].partition(': ')[2]}"]
