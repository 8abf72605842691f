"""Measure the SAEs of one order: by what they read, family by family; what goes wrong with one leaves the others."""

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.evaluation.evaluation import EvaluatedSae, EvaluationConfig
from orchestrator.config.evaluation.families import Family
from orchestrator.config.evaluation.preconditions import Measurement, check_family
from orchestrator.config.job import JobConfig
from orchestrator.config.model_fit import ModelSizes
from orchestrator.config.synthetic import is_synthetic
from orchestrator.config.validation import parse
from orchestrator.errors import CheckpointsElsewhere, ConfigError, OrchError, shared_error
from orchestrator.estimates.memory import free_in_memory
from orchestrator.loading.rare_collections import rare_collections
from orchestrator.versions import versions
from worker import checked_folder
from worker.accelerator import choose
from worker.activations.heldout_split import Contexts
from worker.activations.source import refuse_other_source
from worker.activations.synthetic_source import SyntheticActivations
from worker.channel import SupervisorChannel
from worker.data import token_file
from worker.evaluation import registry
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import HeldoutText
from worker.evaluation.metric import Measured, NotMeasured, SubjectSae
from worker.evaluation.places import Places
from worker.evaluation.shared_store import SharedStore
from worker.evaluation_order import EvaluationAssignment, EvaluationOrder
from worker.formats import portable
from worker.lens.opening import open_lens
from worker.protocol import Evaluated, Exit, Failure, Left, NotScored, Scored, Started
from worker.sae.inference import InferenceSae
from worker.sae.native.kernels import use
from worker.subject.model import Subject, load_at_first

_POSTPONED = (Exit.MACHINE, Exit.OUT_OF_MEMORY)
"""What another machine, or another try, may do better: such a family is not given up."""
_SAE_SHARE = 0.25
"""Of the memory that is free: what the SAEs may take that are loaded at once."""


@dataclass
class EvaluationJob:
    """One evaluation job of the process."""

    assignment: EvaluationAssignment
    subject_sae: SubjectSae
    to_do: list[Family]
    """Metric families that are missing, in the order in which they are measured."""
    n_done: int = 0
    postponed: Failure | None = None
    """Why a family was left to another attempt."""
    began: float = field(default_factory=time.monotonic)

    @property
    def job_id(self) -> int:
        """Return the job's id."""
        return self.assignment.job_id

    @property
    def lens(self) -> str | None:
        """Return the content id of the lens in whose space the SAE encodes and decodes, where it does."""
        return self.subject_sae.sae.facts.lens

    def tokens_done(self, share: float = 0.0) -> int:
        """Return how far it is, in the unit of its job: the families that are done, and a share of the next."""
        whole = max(1, len(self.to_do))
        return round(min(1.0, (self.n_done + share) / whole) * self.assignment.config.heldout_tokens)


class EvaluationRun:
    """All jobs of an order. They read one model and one text; those of the same places are measured together."""

    def __init__(self, order: EvaluationOrder, channel: SupervisorChannel) -> None:
        """Prepare; nothing is loaded yet."""
        torch.set_num_threads(order.threads)
        self._order, self._channel = order, channel
        self._device = torch.device(choose(order.device))
        in_c = order.compile != "off" and order.compile_folder and self._device.type == "cpu"
        use(Path(order.compile_folder) / "kernels" if in_c else None)
        self._over: set[int] = set()
        """Jobs that have ended, or that the supervisor has asked to drop."""

    def run(self) -> None:
        """Measure everything.

        Raises:
            ConfigError, SubjectError, MachineError: the model or the text cannot be read here.
        """
        assignments = sorted(self._order.jobs, key=_reads)
        with rare_collections():
            subject, text = self._open(assignments)
        facts = {"device": str(self._device), "threads": self._order.threads, "versions": versions()}
        if subject and text:
            facts |= {"subject": {"sha256": subject.fingerprint}}
            facts |= {"tokens": {"id": text.id, "n_tokens": text.tokens.n_tokens}}
        for _, group in groupby(assignments, key=_reads):
            for part in _in_parts(list(group), partial(sae_room, self._device)):
                # What a part has loaded must be gone before the next one loads: no name of it here.
                self._measure_part(
                    [*filter(None, (self._started(assignment, facts) for assignment in part))], subject, text
                )

    def _started(self, assignment: EvaluationAssignment, facts: Mapping[str, Any]) -> EvaluationJob | None:
        """Load the SAE of a job, and report that it is measured; return None where it cannot be, which is reported."""
        if assignment.job_id in self._over:
            return None
        self._channel.alive(0, phase="starting")
        with _isolated(partial(self._fail, assignment.job_id)):
            if "subject" in facts:
                _check_has_read(assignment, facts)
            sae = _read_sae(assignment.evaluated).to(self._device)
            self._channel.send(Started(0, dict(facts)), assignment.job_id)
            asked = set(assignment.config.plan.metrics) - set(assignment.measured)
            to_do = [family for family in registry.in_order() if family in asked]
            return EvaluationJob(assignment, SubjectSae(assignment.job_id, assignment.evaluated.label, sae), to_do)
        return None

    def _open(self, jobs: Sequence[EvaluationAssignment]) -> tuple[Subject | None, HeldoutText | None]:
        """Load the model that the jobs name, and pack their text."""
        places = list(dict.fromkeys(job.config.subject for job in jobs))
        if not jobs or is_synthetic(places[0].model):
            return None, None
        config = _training_config(jobs[0].config)
        subject = load_at_first(places, self._device)
        folder = Path(self._order.tokens_folder)
        with shared_error("stream"):
            tokens = token_file.pack(
                config.data, subject.tokenizer, folder, lambda _: self._channel.alive(0, phase="packing")
            )
            return subject, HeldoutText(tokens, Contexts.of(tokens, config), config.data.source)

    def _measure_part(self, jobs: list[EvaluationJob], subject: Subject | None, text: HeldoutText | None) -> None:
        """Measure jobs of the same places together."""
        if not jobs:
            return

        def fail(error: Exception) -> None:  # the place may be missing from the model: other places are not
            for job in jobs:
                if job.job_id not in self._over:
                    self._fail(job.job_id, error)

        with _isolated(fail):
            places = Places.of(self._context(jobs, subject, text))
            for family in registry.in_order():
                sharing = sorted((job for job in jobs if family in job.to_do), key=lambda job: _options(job, family))
                for _, group in groupby(sharing, key=lambda job: _options(job, family)):
                    self._measure_family(family, [job for job in group if job.job_id not in self._over], places)
                for job in jobs:
                    if not job.to_do or job.to_do[-1] == family:  # its companions may have hours before them
                        self._end(job)
            if (refusal := places.whole.store.refusal) is not None:
                print(f"warning: not kept for later evaluations: {refusal.message}", flush=True)

    def _context(
        self, jobs: Sequence[EvaluationJob], subject: Subject | None, text: HeldoutText | None
    ) -> EvaluationContext:
        """Return everything that jobs are measured with, but the place."""
        config, store = jobs[0].assignment.config, SharedStore(Path(self._order.store_folder))

        def progress(phase: str, share: float) -> None:
            for job in jobs:
                if job.job_id not in self._over:
                    self._channel.alive(job.tokens_done(share), job.job_id, phase=phase)
            self._leave_requested()

        if subject is None or text is None:
            (drawn,) = SyntheticActivations(config.subject.model, self._device).heldout(_training_config(config))
            return EvaluationContext(config, self._device, store, progress, drawn=drawn)
        sha256 = jobs[0].lens
        lens = open_lens(Path(self._order.lenses_folder), sha256, subject) if sha256 else None
        return EvaluationContext(
            config, self._device, store, progress, subject, text, lens=lens, lens_sha256=sha256 or ""
        )

    def _measure_family(self, family: Family, jobs: Sequence[EvaluationJob], places: Places) -> None:
        """Measure one family of some SAEs, and report what is found of each."""
        subject, jobs = places.whole.subject, list(jobs)
        sizes = ModelSizes(subject.n_layers, subject.vocabulary) if subject is not None else ModelSizes()
        for job in [*jobs]:
            try:
                check_family(family, Measurement(job.assignment.config, job.subject_sae.sae.facts, sizes))
            except OrchError as error:
                jobs.remove(job)
                self._missed(family, job, error)
        if not jobs:
            return
        waiting, began = {job.job_id: job for job in jobs}, time.monotonic()

        def fail(error: Exception) -> None:
            for job in waiting.values():
                self._missed(family, job, error)

        with _isolated(fail), torch.no_grad():
            options = jobs[0].assignment.config.plan.options(family)
            for found in places.measure(family, [job.subject_sae for job in jobs], options):
                job, seconds = waiting.pop(found.job_id), time.monotonic() - began
                began = time.monotonic()
                with _isolated(partial(self._missed, family, job)):
                    self._report(family, job, found, seconds, places.whole)

    def _report(
        self, family: Family, job: EvaluationJob, found: Measured | NotMeasured, seconds: float,
        context: EvaluationContext,
    ) -> None:  # fmt: skip
        if isinstance(found, NotMeasured):
            raise found.error
        if job.job_id in self._over:
            return
        scored = Scored(
            family=family,
            scores=[_finite(score.told()) for score in found.scores],
            wall_seconds=seconds,
            files_uri=_keep(found, Path(job.assignment.artifacts) / family),
            tokens=context.n_tokens,
            measured_on=context.text.name if context.text else context.config.subject.model,
        )
        job.n_done += 1
        self._channel.send(scored, job.job_id)

    def _missed(self, family: Family, job: EvaluationJob, error: Exception) -> None:
        """Report why a family has no scores of an SAE; keep it for the end where another attempt may do better."""
        job.n_done += 1
        failure = Failure.of(error)
        if failure.code in _POSTPONED:
            job.postponed = failure
        elif job.job_id not in self._over:
            self._channel.send(NotScored(family, failure.kind, failure.message, failure.hint), job.job_id)

    def _end(self, job: EvaluationJob) -> None:
        if job.job_id not in self._over:
            self._channel.send(job.postponed or Evaluated(time.monotonic() - job.began), job.job_id)
            self._over.add(job.job_id)

    def _fail(self, job_id: int, error: Exception) -> None:
        self._channel.send(Failure.of(error), job_id)

    def _leave_requested(self) -> None:
        """Measure no more of the jobs that the supervisor asks to drop: what is measured of them is stored already."""
        for request in self._channel.drop_requests():
            self._over.add(request.job_id)
            self._channel.send(Left(0), request.job_id)


def sae_room(device: torch.device) -> int:
    """Return how many bytes of SAEs are loaded at once: the rest is for the model, and for what is measured with."""
    return int(_SAE_SHARE * (free_in_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]))


def _in_parts(jobs: list[EvaluationAssignment], room: Callable[[], int]) -> Iterator[list[EvaluationAssignment]]:
    """Yield jobs in parts whose SAEs have room together, at least one in each."""
    while jobs:
        sizes = accumulate(job.evaluated.n_bytes for job in jobs)
        within = room()
        n = max(1, sum(size <= within for size in sizes))
        yield jobs[:n]
        del jobs[:n]


def _check_has_read(assignment: EvaluationAssignment, here: Mapping[str, Any]) -> None:
    """Refuse an SAE that was trained on another model, or on another text unless one is named."""
    before = dict(assignment.evaluated.trained_on)
    if assignment.config.plan.source is not None:
        before.pop("tokens", None)
    refuse_other_source(
        before, here, whose="the SAE was trained on",
        otherwise="To measure on a text as it is now: orch evaluate --data",
    )  # fmt: skip


def _read_sae(evaluated: EvaluatedSae) -> InferenceSae:
    folder = Path(evaluated.uri)
    if not folder.parent.exists():
        raise CheckpointsElsewhere(
            f"the SAE {evaluated.label} is not there, nor the folder it lay in, {folder.parent}",
            hint="Is the folder of artifacts (ORCH_ARTIFACTS, else ORCH_HOME) mounted, and shared by every worker?",
        )
    if not folder.is_dir():
        raise ConfigError(f"the files of {evaluated.label} are gone: there is no folder {folder}")
    return portable.read(folder, evaluated.label).changed({}, facts=evaluated.read_facts())


@contextmanager
def _isolated(then: Callable[[Exception], None]) -> Iterator[None]:
    """Let an error end what is done here and nothing else: `then` is told of it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, it is of one SAE, family or place
        if not isinstance(error, OrchError):  # what a person can mend has a message, which is logged as it is sent
            traceback.print_exc()
        then(error)


def _finite(value: Any) -> Any:
    """Return values as JSON holds them: a float that is not finite is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def _reads(assignment: EvaluationAssignment) -> str:
    """Return what jobs must agree on to have one context, as text: places, lens, and the seed of what is drawn."""
    config = assignment.config
    return f"{config.subject.part_json} {assignment.evaluated.read_facts().lens} {config.plan.seed}"


def _options(job: EvaluationJob, family: Family) -> str:
    """Return what jobs of one context must agree on to be measured together in a family, as text."""
    options = job.assignment.config.plan.options(family)
    return options.part_json if options else ""


def _training_config(config: EvaluationConfig) -> JobConfig:
    """Return the config of a training job that reads the same text at the same place."""
    read = {"subject": config.subject.model_dump(), "data": config.data.model_dump()}
    # Nothing is trained: what is left of the text need not fill a batch.
    heldout = {"training": {"heldout_tokens": config.heldout_tokens, "batch_tokens": 1}}
    return parse(read | {"sae": {"normalize": "none", "k": 1}} | heldout)


def _keep(found: Measured, folder: Path) -> str | None:
    """Write the files of a measurement into a checked folder; return its path."""
    if not found.files:
        return None

    def fill(into: Path) -> None:
        for name, content in found.files.items():
            checked_folder.write_text(into / name, json.dumps(_finite(content)))

    folder.parent.mkdir(parents=True, exist_ok=True)
    checked_folder.write_folder(folder, fill)
    return str(folder)
