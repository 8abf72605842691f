"""Rules of the state machine for jobs that are asked for one by one: evaluations, and tuned lenses."""

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from sqlalchemy import Engine, select

from orchestrator import queue
from orchestrator.database.engine import reading
from orchestrator.database.models import Job
from orchestrator.errors import StorageError
from tests.conformance.fault_port import FATES, at_commits
from tests.conformance.model import Expected, Model
from tests.evaluation_shorthand import BOTH
from tests.lens_shorthand import lens_config

MOST_JOBS = 7
WELL = "goes well"
FATE = st.sampled_from([WELL, WELL, "fails", "loses its answer"])
LENSES = tuple(lens_config(max_tokens=tokens) for tokens in (10_000_000, 20_000_000))
MAX_FAILURES_OF_ASKED = 3
"""Of the sweeps that evaluations of imported SAEs, and lenses, are in."""
_FIRST_LENS = -10
"""Numbers of configs from here down are those of lenses."""


class AskedJobs(RuleBasedStateMachine):
    engine: Engine
    model: Model
    saes: list[int]

    @precondition(lambda self: len(self.model.jobs) < MOST_JOBS)
    @rule(which=st.integers(0, 1), again=st.booleans(), fate=FATE)
    def evaluate(self, which: int, again: bool = False, fate: str = WELL) -> None:
        def ask() -> bool:
            (asked,) = queue.evaluate(self.engine, BOTH, [self.saes[which]], again=again)
            return asked.is_new

        for job_id, replica, stream in self._asked(-1 - which, "evaluate", again, ask, fate):
            self.model.jobs[job_id] = Expected(
                -1 - which, 0, replica, ready_at=self.model.now, stream=stream or "", sweep="evaluations",
                max_failures=MAX_FAILURES_OF_ASKED, kind="evaluate",
            )  # fmt: skip

    @precondition(lambda self: len(self.model.jobs) < MOST_JOBS)
    @rule(which=st.integers(0, 1), again=st.booleans(), fate=FATE)
    def train_lens(self, which: int, again: bool = False, fate: str = WELL) -> None:
        def ask() -> bool:
            return queue.train_lens(self.engine, LENSES[which], again=again).is_new

        for job_id, replica, stream in self._asked(_FIRST_LENS - which, "lens", again, ask, fate):
            assert stream is None, "it shares a process with no other job"
            self.model.jobs[job_id] = Expected(
                _FIRST_LENS - which, 0, replica, ready_at=self.model.now, budget=LENSES[which].training.max_tokens,
                sweep="lenses", max_failures=MAX_FAILURES_OF_ASKED, kind="lens",
            )  # fmt: skip

    def _asked(
        self, config: int, kind: str, again: bool, ask: Callable[[], bool], fate: str
    ) -> list[tuple[int, int, str | None]]:
        """Ask for a job while the commit meets its fate; return what is new of it: id, replica and stream."""
        expected = again or not self.model.holds(config)
        with at_commits(self.engine, FATES[fate]):
            try:
                assert ask() == expected
            except StorageError:
                expected &= fate == "loses its answer"
        with reading(self.engine) as session:
            columns = select(Job.id, Job.replica, Job.stream_key).where(Job.kind == kind)
            new = [row for row in session.execute(columns) if row.id not in self.model.jobs]
        assert len(new) == expected
        return [(row.id, row.replica, row.stream_key) for row in new]
