"""The evaluation process: measures the SAEs of one order, and knows no database.

It reads the order on standard input and answers in JSON lines on standard output. What it has reported is stored; it
may be ended at any time, and the next attempt measures the metric families that are missing.
"""

import os
import sys

from orchestrator.loading.rare_collections import rare_collections
from worker import log_stream
from worker.channel import SupervisorChannel, carried_out
from worker.evaluation_order import EvaluationOrder
from worker.protocol import Exit


def main() -> int:
    """Carry out one order; return the exit status."""
    log_stream.install()
    channel = SupervisorChannel()
    sys.stdout = sys.stderr
    return carried_out(channel, lambda: carry_out(channel.order(EvaluationOrder.from_json), channel))


def carry_out(order: EvaluationOrder, channel: SupervisorChannel) -> Exit:
    """Measure the SAEs of an order."""
    # torch takes seconds to load: now that the channel is open, the attempt can be ended meanwhile.
    with rare_collections():
        from worker.evaluation.run import EvaluationRun

    EvaluationRun(order, channel).run()
    return Exit.DONE


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # torch takes a while to clean up what the system frees anyway
