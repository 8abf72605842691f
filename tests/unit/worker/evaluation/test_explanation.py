"""Explanation scores: real endpoints and programs; what is not allowed is not asked, and what goes wrong is said."""

import json
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from orchestrator.config.evaluation.explanation import ExplanationOptions
from orchestrator.errors import ConfigError, MachineError
from orchestrator.settings import Settings
from tests.unit.worker.evaluation import explainer_doubles
from tests.unit.worker.evaluation.explainer_doubles import EndpointDouble, answer, endpoint_double
from tests.unit.worker.evaluation.planted import context_of, planted_sae, random_tokens, stand_in, token
from worker.evaluation.context import EvaluationContext
from worker.evaluation.explanation import endpoint, measure
from worker.evaluation.explanation.answers import BadAnswer, correlation, read_activations, read_explanation
from worker.evaluation.explanation.explainer import open_explainer
from worker.evaluation.explanation.prompts import Excerpt
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae

KEY = "an-endpoint-key-of-nobody"
COMMAND = (sys.executable, str(Path(explainer_doubles.__file__)))
SAE = SubjectSae(1, "1", planted_sae([[token(10)], [token(20)], [token(10), token(20)]]))  # the third is never active


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[EndpointDouble]:
    monkeypatch.setattr(endpoint, "_FIRST_WAIT_SECONDS", 0.01)
    with endpoint_double() as made:
        monkeypatch.setenv("ORCH_EXPLAINERS", f"{made.url}/, /no/such/program --flag")
        monkeypatch.setenv("EXPLAINER_API_KEY", KEY)
        yield made


@pytest.fixture
def context(tmp_path: Path) -> EvaluationContext:
    return context_of(stand_in(), random_tokens(tmp_path / "t.u16", n_contexts=800), tmp_path / "store")


def _options(double: EndpointDouble, **more: Any) -> ExplanationOptions:
    return ExplanationOptions(endpoint=double.url, model="m", build_tokens=8000, excerpt_tokens=8, **more)


def _by_name(found: Measured | NotMeasured) -> dict[tuple[str, str], Score]:
    assert isinstance(found, Measured), found
    return {(score.metric, score.variant): score for score in found.scores}


def test_an_endpoint_that_names_the_token_scores_1(double: EndpointDouble, context: EvaluationContext) -> None:
    (found,) = measure([SAE], context, _options(double))
    by_name = _by_name(found)
    score = by_name["explanation_score", ""]
    assert score.value == pytest.approx(1)
    assert score.n == 2
    assert by_name["explanation_score", "all"].value == pytest.approx(2 / 3)
    assert by_name["explanation_silent_share", ""].value == pytest.approx(1 / 3)
    assert by_name["explanation_failed_share", ""].value == 0
    assert isinstance(found, Measured)
    kept = json.loads(json.dumps(found.files["explanations.json"]))["latents"]
    assert kept["0"]["explanation"] == json.dumps([stand_in().tokenizer.decode([10])])
    assert len(kept["0"]["simulated"]) == len(kept["0"]["excerpts"])
    assert kept["2"]["explanation"] is None


def test_the_simulator_is_not_told_what_it_is_to_predict(double: EndpointDouble, context: EvaluationContext) -> None:
    next(iter(measure([SAE], context, _options(double))))
    contents = [json.loads(sent["messages"][1]["content"]) for sent in double.requests]
    assert [sent["model"] for sent in double.requests] == ["m"] * 4
    for content in contents:
        if content["task"] == "simulate":
            assert content.keys() == {"task", "explanation", "excerpts"}
            assert all(isinstance(word, str) for row in content["excerpts"] for word in row)
        else:
            assert max(value for one in content["excerpts"] for value in one["activations"]) == 10


def test_the_key_goes_into_the_header_alone(double: EndpointDouble, context: EvaluationContext) -> None:
    (found,) = measure([SAE], context, _options(double))
    assert double.authorizations == [f"Bearer {KEY}"] * 4
    assert isinstance(found, Measured)
    assert KEY not in json.dumps([double.requests, found.files, [score.told() for score in found.scores]])
    assert KEY not in _options(double).part_json


@pytest.mark.parametrize("status", [400, 401, 403, 404, 302, 307])
def test_what_stays_wrong_is_said_once_and_without_the_key(
    status: int, double: EndpointDouble, context: EvaluationContext
) -> None:
    with endpoint_double() as other:
        double.location = f"{other.url}/chat/completions"
        double.statuses = [status] * 99
        (found,) = measure([SAE], context, _options(double))
        assert other.requests == []
    assert isinstance(found, NotMeasured)
    assert isinstance(found.error, ConfigError)
    assert f"HTTP status {status}" in str(found.error)
    assert found.error.hint
    assert KEY not in str(found.error)
    assert len(double.requests) <= 4  # those that were under way; none twice


@pytest.mark.parametrize("statuses", [[500], [429, 503], [408, 502, 500]])
def test_what_passes_is_tried_again(statuses: list[int], double: EndpointDouble, context: EvaluationContext) -> None:
    double.statuses = list(statuses)
    (found,) = measure([SAE], context, _options(double))
    assert _by_name(found)["explanation_score", ""].value == pytest.approx(1)


def test_an_endpoint_that_stays_down_is_the_machines_fault(
    double: EndpointDouble, context: EvaluationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.statuses = [503] * 99
    with pytest.raises(MachineError, match="did not answer, 4 times: HTTP status 503"):
        next(iter(measure([SAE], context, _options(double))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        double.url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    monkeypatch.setenv("ORCH_EXPLAINERS", double.url)
    with pytest.raises(MachineError, match="refused"):
        next(iter(measure([SAE], context, _options(double))))


def test_an_endpoint_that_hangs(double: EndpointDouble, context: EvaluationContext) -> None:
    double.seconds = 5
    with pytest.raises(MachineError, match="timed out"):
        next(iter(measure([SAE], context, _options(double, timeout_seconds=0.1))))


def test_nonsense_of_one_latent_leaves_the_others(double: EndpointDouble, context: EvaluationContext) -> None:
    word = stand_in().tokenizer.decode([10])

    def content(request: dict[str, Any]) -> str:
        found = answer(request)
        return (
            "I cannot say." if found.get("explanation") == json.dumps([word]) else f"```json\n{json.dumps(found)}\n```"
        )

    double.content = content
    (found,) = measure([SAE], context, _options(double))
    by_name = _by_name(found)
    assert by_name["explanation_score", ""].value == pytest.approx(1)
    assert by_name["explanation_score", ""].n == 1
    assert by_name["explanation_failed_share", ""].value == pytest.approx(1 / 3)
    assert isinstance(found, Measured)
    assert "the answer is no JSON object: 'I cannot say.'" in found.files["explanations.json"]["latents"]["0"]["error"]


@pytest.mark.parametrize("body", [{"choices": []}, [], {"choices": [{"message": {"content": None}}]}])
def test_an_endpoint_that_answers_nonsense_alone(
    body: object, double: EndpointDouble, context: EvaluationContext
) -> None:
    double.body = lambda content: body
    (found,) = measure([SAE], context, _options(double))
    assert isinstance(found, NotMeasured)
    assert "no answer of use for any of 2 latents" in str(found.error)
    assert "no chat completion" in str(found.error)


def test_a_command_is_asked_the_same(context: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_EXPLAINERS", shlex.join(COMMAND))
    options = ExplanationOptions(command=COMMAND, build_tokens=8000, excerpt_tokens=8)
    (found,) = measure([SAE], context, options)
    assert _by_name(found)["explanation_score", ""].value == pytest.approx(1)


@pytest.mark.parametrize(
    "asked",
    [
        {"command": ("touch", "mark")},
        {"command": ("/no/such/program", "--flag", "--more")},
        {"command": ("/no/such/program",)},
        {"endpoint": "http://127.0.0.1:9/v1", "model": "m"},
    ],
)
def test_what_the_settings_do_not_allow_is_not_asked(
    asked: dict[str, Any], context: EvaluationContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ORCH_EXPLAINERS", "touch other, /no/such/program --flag")
    with pytest.raises(ConfigError, match="does not allow") as caught:
        next(iter(measure([SAE], context, ExplanationOptions.model_validate(asked))))
    assert caught.value.hint
    assert not (tmp_path / "mark").exists()


def test_nothing_is_allowed_by_default() -> None:
    with pytest.raises(ConfigError, match="does not allow"):
        open_explainer(ExplanationOptions(command=COMMAND), Settings(), {})


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.stderr.write('broken'); sys.exit(3)", "ended with exit status 3: broken"),
        ("print('hello')", "no JSON object: 'hello"),
        ("print('{}')", "no explanation"),
        ("import sys; sys.stdin.close()", "no JSON object: ''"),
    ],
)
def test_a_command_that_fails(
    program: str, said: str, context: EvaluationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-c", program)
    monkeypatch.setenv("ORCH_EXPLAINERS", shlex.join(command))
    (found,) = measure([SAE], context, ExplanationOptions(command=command, build_tokens=8000, excerpt_tokens=8))
    assert isinstance(found, NotMeasured)
    assert said in str(found.error)


def test_a_command_that_is_not_there(context: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_EXPLAINERS", "/no/such/program")
    (found,) = measure([SAE], context, ExplanationOptions(command=("/no/such/program",), build_tokens=8000))
    assert isinstance(found, NotMeasured)
    assert isinstance(found.error, ConfigError)
    assert "cannot be run: No such file or directory" in str(found.error)


def test_a_command_that_hangs_is_ended_with_its_children(
    context: EvaluationContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ("sh", "-c", f"sleep 300 & echo $! >> {tmp_path}/children; wait")
    monkeypatch.setenv("ORCH_EXPLAINERS", shlex.join(command))
    options = ExplanationOptions(command=command, build_tokens=8000, excerpt_tokens=8, timeout_seconds=1.0)
    (found,) = measure([SAE], context, options)
    assert isinstance(found, NotMeasured)
    assert "gave no answer in 1 s" in str(found.error)
    _all_ended(tmp_path / "children")


def test_the_process_can_be_told_to_end_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("sh", "-c", f"sleep 300 & echo $! >> {tmp_path}/children; wait")
    monkeypatch.setenv("ORCH_EXPLAINERS", shlex.join(command))

    def progress(phase: str, share: float) -> None:
        children = tmp_path / "children"
        if "latents" in phase and children.exists() and children.read_text().endswith("\n"):  # written, not begun
            raise KeyboardInterrupt

    tokens = random_tokens(tmp_path / "t.u16", n_contexts=800)
    context = context_of(stand_in(), tokens, tmp_path / "store", progress=progress)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        next(iter(measure([SAE], context, ExplanationOptions(command=command, build_tokens=8000))))
    assert time.monotonic() - started < 30
    _all_ended(tmp_path / "children")


def _all_ended(file: Path) -> None:
    numbers = [int(line) for line in file.read_text().split()]
    assert numbers
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(n) and psutil.Process(n).status() != psutil.STATUS_ZOMBIE for n in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "asked",
    [
        {"endpoint": "https://host/v1", "model": "m", "command": ["x"]},
        {"endpoint": "https://host/v1"},
        {"model": "m"},
        {"command": []},
        {"endpoint": "file:///etc/passwd", "model": "m"},
        {"endpoint": "https://ada:pw@host/v1", "model": "m"},
        {"endpoint": "https://host/v1?api_key=x", "model": "m"},
        {"timeout_seconds": 0.0},
    ],
)
def test_options_that_make_no_sense(asked: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExplanationOptions.model_validate(asked)


EXCERPTS = [Excerpt(["a", "b"], np.array([0, 2], np.float32)), Excerpt(["c"], np.array([1], np.float32))]


@pytest.mark.parametrize(
    "found",
    ["", "[]", '{"activations": 3}', '{"activations": [[0, 1]]}', '{"activations": [[0, 1], [11]]}',
     '{"activations": [[0, true], [1]]}', '{"activations": [[0, NaN], [1]]}', '{"activations": [["0", 1], [1]]}',
     "[" * 100_000],
)  # fmt: skip
def test_activations_that_were_not_asked_for(found: str) -> None:
    with pytest.raises(BadAnswer):
        read_activations(found, EXCERPTS)


def test_what_answers_are_read() -> None:
    assert read_explanation('Here it is:\n```json\n{"explanation": " words "}\n```') == "words"
    rows = read_activations('{"activations": [[0, 10], [5]]}', EXCERPTS)
    assert correlation(rows, EXCERPTS) == pytest.approx(1)
    assert correlation([np.zeros(2), np.zeros(1)], EXCERPTS) == 0
    assert correlation([np.array([10.0, 0.0]), np.array([5.0])], EXCERPTS) == pytest.approx(-1)
