"""A log that is masked, and never waited for."""

import os
import time
from pathlib import Path

from worker.log_stream import LogStream


def test_what_is_written_is_clean_and_whole(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = LogStream(file.fileno())
        print("one", "two", file=log)
        log.write("redis://:pass")
        log.write("word@h and \x1b[2J\n")
        log.write("the end")
        log.flush()
    assert (tmp_path / "log").read_text() == "one two\nredis://:***@h and \\x1b[2J\nthe end"


def test_a_pipe_that_nobody_reads_is_not_waited_for_and_what_is_lost_is_counted() -> None:
    reader, writer = os.pipe()
    log = LogStream(writer)
    started = time.monotonic()
    for number in range(3000):
        log.write(f"{number:100}\n")
    assert time.monotonic() - started < 5
    os.read(reader, 1 << 20)
    log.write("again\n")
    told = os.read(reader, 1 << 20).decode()
    assert told.endswith("again\n")
    assert "lines of this log were lost here" in told
    os.close(reader)
    log.write("nobody is there\n")
    log.flush()
    os.close(writer)
    log.write("not even this end\n")
