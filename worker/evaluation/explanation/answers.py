"""Read what an explainer answered; an answer that is not what was asked for is refused, never mended by guesses."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.evaluation.explanation.prompts import LARGEST, Excerpt

_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_SHOWN = 100
_MOST_OF_AN_EXPLANATION = 4000


class BadAnswer(Exception):
    """An explainer gave no answer of use: of one latent, not of the family."""


def read_explanation(answer: str) -> str:
    """Return the explanation in an answer.

    Raises:
        BadAnswer: there is none.
    """
    found = _object(answer).get("explanation")
    if not isinstance(found, str) or not found.strip():
        raise BadAnswer(f"the answer holds no explanation: {answer[:_SHOWN]!r}")
    return found.strip()[:_MOST_OF_AN_EXPLANATION]


def read_activations(answer: str, excerpts: Sequence[Excerpt]) -> list[NDArray[np.float64]]:
    """Return the predicted activations in an answer, one array for each excerpt.

    Raises:
        BadAnswer: there is not one number from 0 to 10 for each token.
    """
    found = _object(answer).get("activations")
    wanted = [len(excerpt.tokens) for excerpt in excerpts]
    if not isinstance(found, list) or not all(isinstance(row, list) for row in found):
        raise BadAnswer(f"the answer holds no lists of activations: {answer[:_SHOWN]!r}")
    if [len(row) for row in found] != wanted:
        raise BadAnswer(f"the answer has {[len(row) for row in found]} activations for excerpts of {wanted} tokens")
    for value in (value for row in found for value in row):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
            raise BadAnswer(f"{value!r} is no activation from 0 to {LARGEST}")
    return [np.array(row, dtype=np.float64) for row in found]


def correlation(simulated: Sequence[NDArray[np.float64]], excerpts: Sequence[Excerpt]) -> float:
    """Return Pearson's r of simulated and true activations over the tokens of all excerpts; 0 where one is constant."""
    predicted = np.concatenate(list(simulated))
    true = np.concatenate([excerpt.activations for excerpt in excerpts]).astype(np.float64)
    predicted, true = predicted - predicted.mean(), true - true.mean()
    size = math.sqrt(float(predicted @ predicted) * float(true @ true))
    return float(predicted @ true) / size if size else 0.0


def _object(answer: str) -> dict[str, Any]:
    """Return the JSON object that an answer is, alone or within a fence of Markdown."""
    fenced = _FENCED.search(answer)
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadAnswer(f"the answer is no JSON object: {answer[:_SHOWN]!r}")
    return found
