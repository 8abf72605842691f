"""The metric family `probes`: what the best latent of each SAE tells of a text, against what channels tell.

For each task a logistic probe is fitted to the pre-activation of every latent; the best on the examples that are fitted
on is measured on others. `same split` is the paper's definition, without the others.

Source: Gao et al. 2024, Scaling and evaluating sparse autoencoders, section 4.2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.config.evaluation.probes import ProbesOptions
from orchestrator.config.job import Part
from orchestrator.errors import ConfigError, OrchError, SubjectError
from worker.evaluation.context import EvaluationContext, Progress
from worker.evaluation.metric import Measured, NotMeasured, SubjectSae
from worker.evaluation.probes.baselines import Baselines
from worker.evaluation.probes.features import TaskSet, load_task_set
from worker.evaluation.probes.fitting import Projection, most_columns, n_ticks, sparse_probes, train_losses
from worker.evaluation.probes.scores import TaskScores, draw_weights, scores_of, table_of
from worker.evaluation.probes.sources import ProbeSource, open_sources
from worker.sae.inference import InferenceSae

FILE = "probes.json"


def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Yield the scores of the probes of each SAE; `MetricFamily`.

    Raises:
        ConfigError: nothing can be fitted to any task.
        MachineError: the hub is out of reach, or the disk full.
    """
    assert isinstance(options, ProbesOptions)
    clock = _Clock(context.progress, len(saes))
    left_out: dict[str, str] = {}
    sets = [tasks.to(context.device) for tasks in _task_sets(context, options, left_out, clock)]
    if not sets:
        said = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise ConfigError(f"probes.tasks: no task can be measured: {said}", hint="Name other tasks with probes.tasks.")
    for name, why in left_out.items():
        print(f"warning: probes: task {name} is left out: {why}", flush=True)
    baselines = [Baselines(tasks, context, options, clock.tick) for tasks in sets]
    for number, one in enumerate(saes):
        clock.begin(number, one, sets)
        try:
            found = [task for known in baselines for task in _scored(one.sae, known)]
        except (OrchError, RuntimeError) as error:
            yield NotMeasured(one.job_id, error)
            continue
        generator = np.random.default_rng(context.seed("probes: tasks"))
        most = most_columns(one.sae.facts.n_latents)
        too_many = {f"k={k}": f"sparse probes choose from {most} latents" for k in options.k if k > most}
        told = left_out | too_many
        yield Measured(one.job_id, scores_of(found, told, generator), {FILE: table_of(found, told)})


@dataclass
class _Clock:
    """Says how far the work is: a share for each SAE, and within it as often as asked."""

    progress: Progress
    n_saes: int
    phase: str = "probes: reading the tasks"
    number: int = 0
    ticks: int = 0
    expected: int = 0

    def begin(self, number: int, one: SubjectSae, sets: Sequence[TaskSet]) -> None:
        """Say that an SAE is measured from now on."""
        self.phase, self.number, self.ticks = f"probes: {one.label}", number, 0
        self.expected = sum(n_ticks(tasks, one.sae.facts.n_latents) for tasks in sets)
        self.tick()

    def tick(self) -> None:
        """Say that the work goes on."""
        self.ticks += 1
        within = min(1.0, self.ticks / self.expected) if self.expected else 0.0
        self.progress(self.phase, (self.number + within) / self.n_saes)


def _task_sets(
    context: EvaluationContext, options: ProbesOptions, left_out: dict[str, str], clock: _Clock
) -> Iterator[TaskSet]:
    """Yield what can be measured, each name once; the others are in `left_out`, with the reason."""
    names: set[str] = set()
    for source in _sources(context, options, left_out, clock):
        name = source.name
        while name in names:
            name += "'"
        names.add(name)
        try:
            tasks = load_task_set(source._replace(name=name), context, options, clock.tick)
        except (ConfigError, SubjectError) as error:
            left_out[name] = error.message
            continue
        left_out |= tasks.left_out
        if tasks.names:
            yield tasks


def _sources(
    context: EvaluationContext, options: ProbesOptions, left_out: dict[str, str], clock: _Clock
) -> Iterator[ProbeSource]:
    for task in options.tasks:
        try:
            yield from open_sources(task, options, context.config.plan.seed, clock.tick)
        except (ConfigError, SubjectError) as error:
            left_out[task.source] = error.message


def _scored(sae: InferenceSae, baselines: Baselines) -> Iterator[TaskScores]:
    """Yield the probes of an SAE for each task of a set."""
    tasks, options = baselines.tasks, baselines.options
    n_latents = sae.facts.n_latents
    projection = Projection(n_latents, sae.pre_acts)
    losses = train_losses(tasks, projection, options.ridge, baselines.tick)
    if not losses.isfinite().any(1).all():
        raise SubjectError("no latent has finite values on the texts of the probes", hint="Check the SAE's weights.")
    sizes = sorted({1, *(k for k in options.k if k <= most_columns(n_latents))})
    known = baselines.of(n_latents)
    generator = np.random.default_rng(baselines.context.seed(f"probes: {tasks.names}"))
    weights = draw_weights(tasks, options.bootstraps, generator)
    for number, name in enumerate(tasks.names):
        found = sparse_probes(tasks, number, projection, losses[number], k=sizes, ridge=options.ridge)
        sparse = {f"k={k}": one for k, one in found.items() if k in options.k}
        yield TaskScores(
            name=name,
            n_train=tasks.train.n,
            labels=tasks.test.labels[number].numpy(),
            weights=weights,
            found={"": found[1], **sparse, **known[number]},
        )
        baselines.tick()
