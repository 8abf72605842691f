"""What a scaling law is: one entry that fitting, printing, drawing and reporting read. The entries are in `laws`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from orchestrator.errors import ConfigError
from orchestrator.scaling.fit.options import GROUNDS, FitOptions
from orchestrator.scaling.fit.sample import Observation, Sample
from orchestrator.scaling.forms import Form
from orchestrator.scaling.plots.canvas import Drawing
from orchestrator.scaling.types import Excluded, Fit, JobMeasurement, LawName


class MissingJob(NamedTuple):
    """One job that a fit lacks."""

    n: int
    k: int
    lr: str
    """A number, or auto."""
    more: str = ""
    """What the command needs besides, such as a larger budget."""
    held_by: str = ""
    """The jobs that it will come of, with their states: they wait, run, or can be tried again. No command asks for it.
    """
    extends: tuple[int, int] | None = None
    """A job that came to nothing but the end of its budget, and the budget to go on to: in place of a new job."""
    no_use: str = ""
    """Why no job of this size would help, in a sentence, where that was tried. No command asks for it."""


class SecondVariable(NamedTuple):
    """What a law depends on beside what its axis counts."""

    argument: Literal["k", "subject_size"]
    """By which argument of `predict` it is given."""
    words: str
    """Its name in a sentence."""
    of: Callable[[JobMeasurement], float]
    """Its value for a job."""
    label: Callable[[Observation], str]
    """Which value an observation has, in words."""


class Quantity(NamedTuple):
    """What a law predicts."""

    label: str
    """Of the axis of its figure."""
    is_loss: bool = False
    is_count: bool = False
    """Whether it counts tokens, and is written as a count."""


FVU = Quantity("fvu (held out)", is_loss=True)


class Figure(NamedTuple):
    """A figure of a law."""

    name: str
    """By which `orch plot --figure` knows it."""
    draw: Callable[["Law", str, Sequence[JobMeasurement], Sequence[Fit]], Drawing | None]
    """From the law, the figure's name, the jobs, and the fits of every law; None where there is nothing to draw."""
    needs_fit: bool = True
    """Whether there is nothing to draw without a fit of the law."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """One scaling law."""

    key: LawName
    """By which commands and the database know it: ln."""
    title: str
    """As it is written: L(N)."""
    about: str
    """What is set against what; with the title it heads the figure."""
    forms: tuple[Form, ...]
    """The functions that may describe it, the simplest first; AICc chooses one."""
    exponent: str
    """The coefficient the law is known by; every form has it."""
    finding: str
    """What the exponent says, in words: `fvu falls with dictionary size as n^b`."""
    needs: str
    """The jobs it takes, in words."""
    why_excluded: Callable[[JobMeasurement, FitOptions], str]
    """Why the law cannot use a job; empty where it can."""
    samples: Callable[[list[JobMeasurement], list[Excluded], FitOptions], list[Sample]]
    """What it is fitted to, from the jobs it may use and the ones left out: a sample for each fit, by rising k."""
    missing_job: Callable[[int, int, Sequence[JobMeasurement]], MissingJob]
    """The job to add at (n, k), given those that were offered."""
    is_enough: Callable[[Sample], bool] = lambda _: True
    """Whether a sample determines the law, beyond the number of points that each form needs."""
    quantity: Quantity = FVU
    """What it predicts."""
    is_over_compute: bool = False
    """Whether its axis counts the FLOPs of points of curves; else it counts the latents of jobs."""
    is_at_equal_tokens: bool = False
    """Whether it compares jobs after one number of tokens, read off their curves; then it is fitted where asked for."""
    second: SecondVariable | None = None
    """Its second variable, where it has one."""
    grounds: tuple[str, ...] = tuple(GROUNDS)
    """What must be the same for all jobs of a fit; a law without `subject` compares subjects."""
    figures: tuple[Figure, ...] = ()

    @property
    def heading(self) -> str:
        """Return the title with what the law is about."""
        return f"{self.title}: {self.about}"

    @property
    def reads_curves(self) -> bool:
        """Say whether it is fitted to points of curves."""
        return self.is_over_compute or self.is_at_equal_tokens

    @property
    def compares_subjects(self) -> bool:
        """Say whether a fit is to the jobs of several subjects."""
        return "subject" not in self.grounds

    @property
    def is_over_k(self) -> bool:
        """Say whether k is its second variable."""
        return self.second is not None and self.second.argument == "k"

    def form(self, name: str) -> Form:
        """Return a form by its name.

        Raises:
            ConfigError: the law has no such form.
        """
        found = next((form for form in self.forms if form.name == name), None)
        if found is None:
            known = ", ".join(form.name for form in self.forms)
            raise ConfigError(f"the law {self.key} has no form {name!r}", hint=f"Its forms: {known}.")
        return found
