"""The trainer: trains the jobs of one order in one process, and knows no database.

It reads the order on standard input and answers in JSON lines on standard output.
"""

import os
import sys
from functools import partial

from worker import log_stream
from worker.channel import SupervisorChannel, carried_out
from worker.protocol import Exit, Order
from worker.rare_collections import rare_collections


def main() -> int:
    """Carry out one order; return the exit status."""
    log_stream.install()
    channel = SupervisorChannel()
    sys.stdout = sys.stderr
    return carried_out(channel, lambda: carry_out(channel.order(Order.from_json), channel))


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
