"""Models of the Hugging Face hub: the local cache first, then a download; an absent network is noticed in seconds."""

import os
import socket
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

from orchestrator.errors import MachineError, OrchError, SubjectError, is_of_machine

DESCRIPTION = ("*.json", "*.txt", "*.model", "*.py", "*.jinja")
WEIGHTS = ("*.safetensors",)
_NOT_OURS = ("original/*", "onnx/*", "consolidated*", "*/*.safetensors")
_REACH_SECONDS = 1.5
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_HINT = "Give a local folder, or check the id, the revision and the network."


def snapshot(model: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the local folder of a model id, cached or downloaded; weights are safetensors or nothing.

    Raises:
        SubjectError: not a model id, or refused by the hub.
        MachineError: not cached while the hub is away or busy, or no room for it.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        folder = _fetch(model, revision, weights=weights, cached_only=True)
    except HFValidationError as error:
        raise SubjectError(f"model {model!r}: {first_line(error)}", hint=_HINT) from None
    except (OSError, ValueError):
        folder = None
    if folder and _is_whole(folder, weights=weights):
        return folder
    if not is_reachable():
        raise out_of_reach(f"model {model!r} is neither a folder nor cached here, and the hub cannot be reached", _HINT)
    try:
        return _fetch(model, revision, weights=weights, cached_only=False)
    except (OSError, ValueError) as error:
        raise refused(f"model {model!r}", error, _HINT) from None


def out_of_reach(message: str, hint: str) -> OrchError:
    """Return the error of a hub that does not answer: the machine's, but where its environment forbids the network."""
    if is_offline():
        return SubjectError(message, hint=f"{hint} HF_HUB_OFFLINE keeps this program off the network.")
    return MachineError(message, hint=hint)


def refused(what: str, error: Exception, hint: str) -> OrchError:
    """Return the error of a download that failed: the machine's, of hub, network or disk; else of what was asked."""
    status = getattr(getattr(error, "response", None), "status_code", 0) or 0
    is_busy = status == 429 or status >= 500
    kind = MachineError if is_busy or is_of_machine(error) else SubjectError
    return kind(f"{what}: {first_line(error)}", hint=hint)


def is_offline() -> bool:
    """Say whether the environment forbids the network."""
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in _OFFLINE)


def is_reachable() -> bool:
    """Say within two seconds whether the hub answers, or whether a proxy might."""
    if is_offline():
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    answers: SimpleQueue[bool] = SimpleQueue()
    # Name look-up has no timeout of its own: it runs in a thread that may be left behind.
    threading.Thread(target=_connect, args=(endpoint.hostname, port, answers), daemon=True).start()
    try:
        return answers.get(timeout=_REACH_SECONDS)
    except Empty:
        return False


def _connect(host: str | None, port: int, answers: SimpleQueue[bool]) -> None:
    try:
        socket.create_connection((host or "", port), timeout=_REACH_SECONDS).close()
        answers.put(True)
    except OSError:
        answers.put(False)


def _fetch(model: str, revision: str | None, *, weights: bool, cached_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            model,
            revision=revision,
            allow_patterns=[*DESCRIPTION, *WEIGHTS] if weights else [*DESCRIPTION],
            ignore_patterns=[*_NOT_OURS],
            local_files_only=cached_only,
        )
    )


def _is_whole(folder: Path, *, weights: bool) -> bool:
    # A folder cached for its config alone is not enough when the weights are asked for.
    return (folder / "config.json").is_file() and (not weights or any(folder.glob("*.safetensors")))


def first_line(error: Exception) -> str:
    """Return the first line of what an error says; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
