"""The process of a lens job: trains the lens of one order, and knows no database.

It reads the order on standard input and answers in JSON lines on standard output.
"""

import os
import sys

from orchestrator.loading.rare_collections import rare_collections
from worker import log_stream
from worker.channel import SupervisorChannel, carried_out
from worker.lens_order import LensOrder
from worker.protocol import Exit


def main() -> int:
    """Carry out one order; return the exit status."""
    log_stream.install()
    channel = SupervisorChannel()
    sys.stdout = sys.stderr
    return carried_out(channel, lambda: carry_out(channel.order(LensOrder.from_json), channel))


def carry_out(order: LensOrder, channel: SupervisorChannel) -> Exit:
    """Train the lens from its newest checkpoint to its end, or until told to yield."""
    # torch takes seconds to load: now that the channel is open, the attempt can be ended meanwhile.
    with rare_collections():
        from worker.lens_training.run import LensRun

        run = LensRun(order, channel)
    return run.run()


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # torch takes a while to clean up what the system frees anyway
