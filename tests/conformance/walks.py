"""Short walks of the state machine, led by hand: each the shortest on which one planted bug shows."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Engine

from tests.conformance.queue_machine import QueueMachine

LOST = "loses its answer"


class Walk:
    """Takes the machine's steps by name: each is compared with the model, and after each every promise must hold."""

    def __init__(self, engine: Engine, configs: Sequence[int] = (0,)) -> None:
        self._machine = QueueMachine()
        self._machine.engine = engine
        self._machine.start(None, configs)

    def __getattr__(self, step: str) -> Callable[..., Any]:
        def take(*given: Any, **how: Any) -> Any:
            said = getattr(self._machine, step)(*given, **how)
            self._machine.the_database_is_the_model()
            self._machine.every_promise_holds()
            return said

        return take


def a_zombie_beats(engine: Engine) -> None:
    walk, old = _with_a_zombie(engine)
    walk.heartbeat(old)


def a_zombie_records(engine: Engine) -> None:
    walk, old = _with_a_zombie(engine)
    walk.record(old, 3)


def a_zombie_saves(engine: Engine) -> None:
    walk, old = _with_a_zombie(engine)
    walk.checkpoint(old, 3)


def a_zombie_finishes_what_waits(engine: Engine) -> None:
    walk = Walk(engine)
    old = walk.claim()
    walk.release(old)
    walk.finish(old)


def _with_a_zombie(engine: Engine) -> tuple[Walk, Any]:
    walk = Walk(engine)
    old = walk.claim()
    walk.release(old)
    walk.claim()
    return walk, old


def cancelled_before_it_ran(engine: Engine) -> None:
    Walk(engine).wish(0, "cancel")


def a_claim_loses_its_answer(engine: Engine) -> None:
    Walk(engine, [0, 1]).claim(LOST)


def a_failure_waits(engine: Engine) -> None:
    walk = Walk(engine)
    walk.fail(walk.claim(), retry=True)


def what_failed_is_trained_alone(engine: Engine) -> None:
    walk = Walk(engine, [0, 1])
    leader = walk.claim()
    walk.fail(walk.claim(), retry=True)
    walk.time_passes(1)
    walk.claim_companion(leader)


def companions_start_from_one_place(engine: Engine) -> None:
    walk = Walk(engine, [0, 1])
    leader, other = walk.claim(), walk.claim()
    walk.checkpoint(other, 3)
    walk.release(other)
    walk.claim_companion(leader)


def a_finish_loses_its_answer(engine: Engine) -> None:
    walk = Walk(engine)
    walk.finish(walk.claim(), fate=LOST)


def a_release_loses_its_answer(engine: Engine) -> None:
    walk = Walk(engine)
    walk.release(walk.claim(), LOST)


def finished_after_a_cancel(engine: Engine) -> None:
    walk = Walk(engine)
    lease = walk.claim()
    walk.wish(0, "cancel")
    walk.finish(lease)


def failed_after_a_cancel(engine: Engine) -> None:
    walk = Walk(engine)
    lease = walk.claim()
    walk.wish(0, "cancel")
    walk.fail(lease, retry=True)


def lost_after_a_cancel(engine: Engine) -> None:
    walk = Walk(engine)
    lease = walk.claim()
    walk.wish(0, "cancel")
    walk.fall_silent(lease)
    walk.reconcile()


def begins_before_its_curve_ends(engine: Engine) -> None:
    walk = Walk(engine)
    lease = walk.claim()
    walk.record(lease, 3)
    walk.checkpoint(lease, 3)
    walk.begin(lease, 1)


def saves_after_a_loss(engine: Engine) -> None:
    walk = Walk(engine)
    walk.fall_silent(walk.claim())
    walk.reconcile()
    walk.checkpoint(walk.claim(), 3)


def silent_for_less_than_the_grace(engine: Engine) -> None:
    walk = Walk(engine)
    walk.claim()
    walk.time_passes(6)
    walk.reconcile()


def retried_beside_its_replacement(engine: Engine) -> None:
    walk = Walk(engine)
    walk.wish(0, "cancel")
    walk.enqueue(0)
    walk.wish(0, "retry")


def a_zombie_measures(engine: Engine) -> None:
    walk, old = _evaluating(engine)
    walk.release(old)
    walk.claim()
    walk.measure(old, "downstream")


def scores_lose_their_answer(engine: Engine) -> None:
    walk, lease = _evaluating(engine)
    walk.measure(lease, "downstream", LOST)


def a_measured_family_fails(engine: Engine) -> None:
    walk, lease = _evaluating(engine)
    walk.measure(lease, "downstream")
    walk.miss(lease, "downstream")


def an_evaluation_ends_early(engine: Engine) -> None:
    walk, lease = _evaluating(engine)
    walk.measure(lease, "downstream")
    walk.finish(lease)


def a_lens_is_trained_by_a_later_attempt(engine: Engine) -> None:
    walk, old = _training_a_lens(engine)
    walk.record(old, 3)
    walk.release(old)
    lease = walk.claim()
    walk.begin(lease, 1)
    walk.record(lease, 2)
    walk.finish(lease)


def a_zombie_brings_a_lens(engine: Engine) -> None:
    walk, old = _training_a_lens(engine)
    walk.release(old)
    walk.claim()
    walk.finish(old)


def a_lens_is_asked_for_after_a_cancel(engine: Engine) -> None:
    walk = Walk(engine, [])
    walk.train_lens(0)
    walk.wish(0, "cancel")
    walk.train_lens(0)
    walk.train_lens(0)


def _training_a_lens(engine: Engine) -> tuple[Walk, Any]:
    walk = Walk(engine, [])
    walk.train_lens(0)
    lease = walk.claim()
    walk.begin(lease, 0)
    return walk, lease


def _evaluating(engine: Engine) -> tuple[Walk, Any]:
    walk = Walk(engine, [])
    walk.evaluate(0)
    return walk, walk.claim()
