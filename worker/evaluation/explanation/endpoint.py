"""An OpenAI-compatible endpoint: one chat completion per request, repeated where the network or the server fails."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError, MachineError
from orchestrator.masking import HIDDEN, mask
from worker.evaluation.explanation.answers import BadAnswer
from worker.evaluation.explanation.prompts import INSTRUCTIONS

_TRIES = 4
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0
_PASSING = {408, 409, 425, 429}
_MOST_OF_AN_ANSWER = 4 << 20
_SHOWN = 200


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another address than the one that is allowed is not asked: the key and the text would go there."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None


class Endpoint:
    """A model behind a base URL."""

    def __init__(self, url: str, model: str, *, key: str, timeout: float) -> None:
        """Take the base URL, the model's name, the key or '', and how many seconds an answer may take."""
        self._url, self._model, self._key, self._timeout = url, model, key, timeout
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._is_closed = False

    def ask(self, request: Mapping[str, Any]) -> str:
        """Return what the model answers."""
        messages = [
            {"role": "system", "content": INSTRUCTIONS[request["task"]]},
            {"role": "user", "content": json.dumps(request, ensure_ascii=False)},
        ]
        body = {"model": self._model, "messages": messages, "temperature": 0}
        wait = _FIRST_WAIT_SECONDS
        for last in [False] * (_TRIES - 1) + [True]:
            try:
                return self._content(self._post(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                self._refuse(error)
                reason, asked = f"HTTP status {error.code}", error.headers.get("Retry-After", "")
            except (OSError, http.client.HTTPException) as error:
                reason, asked = self._hidden(str(getattr(error, "reason", "") or error or type(error).__name__)), ""
            if last or self._is_closed:
                raise MachineError(
                    f"{self._url} did not answer, {_TRIES} times: {reason}",
                    hint="Is the endpoint up, and can this machine reach it? The evaluation is tried again later.",
                )
            time.sleep(min(_LONGEST_WAIT_SECONDS, float(asked) if asked.isdecimal() else wait))
            wait *= 2
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Try nothing again."""
        self._is_closed = True

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(f"{self._url}/chat/completions", body, headers)
        with self._opener.open(request, timeout=self._timeout) as answer:
            content: bytes = answer.read(_MOST_OF_AN_ANSWER + 1)
        return content

    def _content(self, answer: bytes) -> str:
        try:
            content = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError):
            content = None
        if not isinstance(content, str):
            shown = self._hidden(answer[:_SHOWN].decode(errors="replace"))
            raise BadAnswer(f"{self._url} answered with no chat completion: {shown}")
        return content

    def _refuse(self, error: urllib.error.HTTPError) -> None:
        """Raise for a status that stays what it is however often one asks."""
        if error.code >= 500 or error.code in _PASSING:
            return
        said = self._hidden(error.read(_SHOWN).decode(errors="replace"))
        hints = {
            401: "Put a key that it takes into the variable that the setting explainer_key names.",
            403: "Put a key that it takes into the variable that the setting explainer_key names.",
            404: "Is explanation.endpoint the base URL, such as https://host/v1, and is there such a model?",
        }
        hint = hints.get(error.code, "Correct explanation.endpoint or explanation.model.")
        raise ConfigError(f"{self._url} refused with HTTP status {error.code}: {said}", hint=hint) from None

    def _hidden(self, text: str) -> str:
        return mask(text.replace(self._key, HIDDEN) if self._key else text)
