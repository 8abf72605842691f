"""The evaluation process: measures the SAEs of one order, and knows no database.

It reads the order on standard input and answers in JSON lines on standard output. What it has reported is stored; it
may be ended at any time, and the next attempt measures the metric families that are missing.
"""

import os
import sys
import traceback
from contextlib import suppress

from orchestrator.errors import OrchError
from worker import log_stream
from worker.channel import SupervisorChannel
from worker.evaluation_order import EvaluationOrder
from worker.protocol import Exit, Failure


def main() -> int:
    """Carry out one order; return the exit status."""
    log_stream.install()
    channel = SupervisorChannel()
    sys.stdout = sys.stderr
    try:
        order = channel.order(EvaluationOrder.from_json)
        # torch takes seconds to load: now that the channel is open, the attempt can be ended meanwhile.
        from worker.evaluation.run import EvaluationRun

        EvaluationRun(order, channel).run()
        return Exit.DONE
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported to the supervisor
        if not isinstance(error, OrchError):  # what a person can mend has a message, which is logged as it is sent
            traceback.print_exc()
        failure = Failure.of(error)
        with suppress(OSError):
            channel.send(failure)
        return failure.code


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # torch takes a while to clean up what the system frees anyway
