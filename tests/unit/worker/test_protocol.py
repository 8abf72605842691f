"""Messages between supervisor and trainer: every bit of a float survives, and nonsense is passed over."""

import dataclasses
import errno
import json
import math

import pytest

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.curves.point import LayerPoint, Point
from orchestrator.errors import ConfigError, StorageError, SubjectError
from worker.protocol import (
    Alive,
    Assignment,
    Cached,
    CurvePointMessage,
    DropJob,
    Ended,
    Exit,
    Failure,
    Left,
    Message,
    Order,
    Said,
    Started,
    decode,
    describe,
    encode,
)

JOBS = (
    Assignment(3, 2, JobConfig(), "/data/artifacts/3/2", (CheckpointRef("/data/artifacts/3/1/512", 512, "ab"),)),
    Assignment(4, 1, parse({"sae": {"k": 2}}), "/data/artifacts/4/1", ()),
)
ORDER = Order(
    jobs=JOBS, tokens_folder="/data/tokens", compile_folder="/data/compile", device="cpu", threads=1,
    checkpoint_seconds=60.0, supervisor=42, compile="off",
)  # fmt: skip
POINT = Point(1024, 0.1 + 0.2, 1e-300, 1 / 3, math.inf, 0.0, 7.5, 2.0**-1074, 3.25, 1e18, 1e17, 1e19, 0.3, 1.01)


def test_an_order_comes_out_as_it_went_in() -> None:
    line = ORDER.to_json()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert Order.from_json(line) == ORDER


def test_an_order_with_a_bad_config_says_so() -> None:
    values = json.loads(ORDER.to_json())
    values["jobs"][1]["config"]["sae"]["k"] = 0
    with pytest.raises(ConfigError, match=r"sae\.k"):
        Order.from_json(json.dumps(values).encode())


def test_an_order_carries_the_ids_and_is_not_validated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    line = ORDER.to_json()
    monkeypatch.setattr(JobConfig, "model_validate", None)
    assert [job.config.config_id for job in Order.from_json(line).jobs] == [job.config.config_id for job in JOBS]


def test_an_order_of_a_supervisor_from_before_an_upgrade_is_read() -> None:
    values = json.loads(ORDER.to_json())
    for job in values["jobs"]:
        del job["config_id"]
    assert Order.from_json(json.dumps(values).encode()) == ORDER


@pytest.mark.parametrize(
    "message",
    [
        Started(512, {"lr": 1e-4, "subject": {"class": "GPT2LMHeadModel"}}),
        Alive(512, 1234.5),
        Alive(0, 0.0, "packing"),
        CurvePointMessage(POINT),
        CurvePointMessage(POINT._replace(by_layer=(LayerPoint(0, 0.5, 8.0, None), LayerPoint(3, None, 7.5, 0.25)))),
        CheckpointRef("/a folder/ä", 512, "ab"),
        Ended("converged", 512, 1.5, None, 1.0, 2.0, 3.0, 4.0),
        Cached("k", "/a", "gpt2", "resid_post of h.3", "t", 10**12, 7, True),
        Left(512),
        Failure("ConfigError", "line one\nline two", "do that"),
    ],
)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    for job_id in (None, 7):
        line = encode(message, job_id)
        assert line.count(b"\n") == 1
        assert decode(line) == Said(message, job_id)
    assert describe(message)


def test_not_a_number_survives() -> None:
    said = decode(encode(CurvePointMessage(POINT._replace(fvu=math.nan))))
    assert said
    assert isinstance(said.message, CurvePointMessage)
    assert math.isnan(said.message.point.fvu)


@pytest.mark.parametrize(("share", "said"), [(0.0, False), (math.nan, False), (0.125, True)])
def test_a_log_says_no_share_of_dead_latents_that_may_not_have_been_measured(share: float, said: bool) -> None:
    assert ("dead" in describe(CurvePointMessage(POINT._replace(dead_share=share)))) == said


def test_a_wish_comes_out_as_it_went_in() -> None:
    for wish in (DropJob(7, save=True), DropJob(8, save=False)):
        assert wish.to_json().endswith(b"\n")
        assert DropJob.from_json(wish.to_json()) == wish


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no"), Exit.BAD_CONFIG),
        (SubjectError("no"), Exit.BAD_CONFIG),
        (MemoryError(), Exit.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Exit.OUT_OF_MEMORY),
        (RuntimeError("shapes"), Exit.INTERNAL),
        (StorageError("the disk is full"), Exit.MACHINE),
        (OSError(errno.EROFS, "no"), Exit.MACHINE),
        (OSError(errno.ENOENT, "no"), Exit.INTERNAL),
        (RuntimeError("No CUDA GPUs are available"), Exit.MACHINE),
    ],
)
def test_what_an_error_means_for_its_job(error: Exception, code: Exit) -> None:
    failure = Failure.of(error)
    assert (failure.kind, failure.code) == (type(error).__name__, code)
    assert failure.message
    assert failure.hint or code != Exit.OUT_OF_MEMORY, "it says what to lower"


@pytest.mark.parametrize("line", [b"", b"\n", b"hello\n", b"[1]\n", b"3\n", b'{"type":"unknown"}\n', b"\xff\n",
                                  b'{"type":"alive"}\n', b'{"type":"alive","tokens_seen":1'])  # fmt: skip
def test_nonsense_is_no_message(line: bytes) -> None:
    assert decode(line) is None


def test_every_message_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Alive(1, 1.0).tokens_seen = 2  # type: ignore[misc]


def test_a_point_of_one_layer_is_one_that_the_version_before_reads() -> None:
    """A trainer that is started after an upgrade, by a worker that was started before: no point may be lost."""
    assert "by_layer" not in json.loads(encode(CurvePointMessage(POINT), 3))


def test_what_a_later_version_adds_to_a_message_is_left_out() -> None:
    for message in (CurvePointMessage(POINT), Alive(5, 2.0)):
        later = json.dumps(json.loads(encode(message, 3)) | {"of_later": [1]}).encode()
        assert decode(later) == Said(message, 3)
