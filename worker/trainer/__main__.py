"""The trainer: trains the jobs of one order in one process, and knows no database.

It reads the order on standard input and answers in JSON lines on standard output.
"""

import gc
import os
import sys
from collections.abc import Callable
from functools import partial

from orchestrator.loading.rare_collections import rare_collections
from worker import log_stream
from worker.channel import SupervisorChannel, carried_out
from worker.protocol import Exit, Order


def main() -> int:
    """Carry out one order; return the exit status."""
    log_stream.install()
    channel = SupervisorChannel()
    sys.stdout = sys.stderr
    return carried_out(channel, lambda: _carry_out_all(channel.order(Order.from_json), channel))


def _carry_out_all(order: Order, channel: SupervisorChannel) -> int:
    """Carry out an order, and where the supervisor and the device allow it, the evaluation of what was trained.

    Loading torch and the model's classes again would take longer than many an evaluation.
    """
    done = carry_out(order, channel)
    if not order.may_stay or done != Exit.DONE or _has_used_gpu():
        return done
    gc.collect()  # what the jobs have left
    evaluation = channel.next_order()
    if evaluation is None:
        return done
    from worker.evaluation.__main__ import carry_out as evaluate

    return evaluate(evaluation, channel)


def _has_used_gpu() -> bool:
    """Say whether a GPU may hold what the next process needs: only the end of this one surely frees all of it."""
    import torch

    is_initialized: Callable[[], bool] = torch.cuda.is_initialized
    return is_initialized()


def carry_out(order: Order, channel: SupervisorChannel) -> Exit:
    """Train each job from its newest checkpoint to its end, or until the trainer is told to yield."""
    # torch and transformers take seconds to load: they are imported now that the channel is open, so that an attempt
    # can be ended while they load.
    with rare_collections():
        from worker.trainer.context import prepare

        context = prepare(order, channel)

        from worker.trainer.job_start import start_jobs
        from worker.trainer.shared_training import SharedTraining

        jobs = start_jobs(context)
    channel.training_from({job.job_id: job.tokens_seen for job in jobs})
    done = SharedTraining(
        jobs, channel, slots=context.slots, save_every=order.checkpoint_seconds,
        threads=order.threads, at_first_end=partial(_tell_memory, order, context.device),
    ).run()  # fmt: skip
    if context.ranks:
        context.ranks.end()
    return done


def _tell_memory(order: Order, device: str) -> None:
    """Say in the log where what the jobs took of memory is far from what room was made for."""
    from worker.trainer.memory_use import missed_by_much, peak_bytes

    told = missed_by_much([job.config for job in order.jobs], device, peak_bytes(device))
    if told is not None:
        print(told, flush=True)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # torch takes a while to clean up what the system frees anyway
