"""Messages between supervisor and trainer: every bit of a float survives, and nonsense is passed over."""

import dataclasses
import json
import math

import pytest

from orchestrator.config import JobConfig
from orchestrator.curve import Point
from orchestrator.errors import ConfigError
from worker.protocol import Alive, Ended, Failure, Measured, Message, Order, Saved, Started, decode, describe, encode

ORDER = Order(
    job_id=3, attempt=2, config=JobConfig(), artifacts="/data/artifacts/3/2", tokens_folder="/data/tokens",
    resume=(Saved("/data/artifacts/3/1/512", 512, "ab"),), device="cpu", threads=1, checkpoint_seconds=60.0,
    supervisor=42,
)  # fmt: skip
POINT = Point(1024, 0.1 + 0.2, 1e-300, 1 / 3, math.inf, 0.0, 7.5, 2.0**-1074, 3.25, 1e18, 1e17, 1e19)


def test_an_order_comes_out_as_it_went_in() -> None:
    line = ORDER.to_json()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Order.from_json(line) == ORDER


def test_an_order_with_a_bad_config_says_so() -> None:
    values = json.loads(ORDER.to_json())
    values["config"]["sae"]["k"] = 0
    with pytest.raises(ConfigError, match=r"sae\.k"):
        Order.from_json(json.dumps(values).encode())


@pytest.mark.parametrize(
    "message",
    [
        Started(512, {"lr": 1e-4, "subject": {"class": "GPT2LMHeadModel"}}),
        Alive(512, 1234.5),
        Alive(0, 0.0, "packing"),
        Measured(POINT),
        Saved("/a folder/ä", 512, "ab"),
        Ended("converged", 512, 1.5, None, 1.0, 2.0, 3.0, 4.0),
        Failure("ConfigError", "line one\nline two", "do that"),
    ],
)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode(line) == message
    assert describe(message)


def test_not_a_number_survives() -> None:
    message = decode(encode(Measured(POINT._replace(fvu=math.nan))))
    assert isinstance(message, Measured)
    assert math.isnan(message.point.fvu)


@pytest.mark.parametrize("line", [b"", b"\n", b"hello\n", b"[1]\n", b"3\n", b'{"type":"unknown"}\n', b"\xff\n",
                                  b'{"type":"alive"}\n', b'{"type":"alive","tokens_seen":1'])  # fmt: skip
def test_nonsense_is_no_message(line: bytes) -> None:
    assert decode(line) is None


def test_every_message_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Alive(1, 1.0).tokens_seen = 2  # type: ignore[misc]
