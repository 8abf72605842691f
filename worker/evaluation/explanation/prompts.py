"""What an explainer is asked, and what a language model is told of it.

A request is one JSON object, the same for an endpoint and a command; so is the answer.
    {"task": "explain", "excerpts": [{"tokens": [...], "activations": [...]}, ...]} -> {"explanation": "..."}
    {"task": "simulate", "explanation": "...", "excerpts": [[token, ...], ...]} -> {"activations": [[...], ...]}
Activations are whole numbers from 0 to 10, 10 being the largest that is shown to the explainer.
Source: Bills et al. 2023, Language models can explain neurons in language models; the wording is our own.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST = 10

INSTRUCTIONS = {
    "explain": (
        "You are shown excerpts of text, cut into tokens, and how strongly one feature of a language model is active "
        "at each token: a whole number from 0 (not active) to 10 (most active). Say in one sentence of at most 30 "
        "words what the feature is active on, so that a reader who sees only the sentence can tell where it is active "
        'in new text. Answer with one JSON object and nothing else: {"explanation": "..."}'
    ),
    "simulate": (
        "You are given an explanation of what one feature of a language model is active on, and excerpts of text, cut "
        "into tokens. Predict from the explanation alone how strongly the feature is active at each token: a whole "
        "number from 0 (not active, as at most tokens) to 10 (most active). Answer with one JSON object and nothing "
        'else: {"activations": [[...], ...]}, one list per excerpt, in their order, one number per token.'
    ),
}


class Excerpt(NamedTuple):
    """Some tokens that follow each other in a text."""

    tokens: Sequence[str]
    activations: NDArray[np.float32]
    """Of one latent, at each of them."""


def explain(excerpts: Sequence[Excerpt]) -> dict[str, Any]:
    """Return the request for an explanation."""
    largest = max(float(excerpt.activations.max()) for excerpt in excerpts) or 1.0
    shown = [
        {
            "tokens": list(excerpt.tokens),
            "activations": np.rint(LARGEST * excerpt.activations / largest).astype(int).tolist(),
        }
        for excerpt in excerpts
    ]
    return {"task": "explain", "excerpts": shown}


def simulate(explanation: str, excerpts: Sequence[Excerpt]) -> dict[str, Any]:
    """Return the request for predicted activations; the true ones are not in it."""
    return {"task": "simulate", "explanation": explanation, "excerpts": [list(one.tokens) for one in excerpts]}
