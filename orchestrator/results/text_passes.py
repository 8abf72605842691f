"""How many tokens of a text train, as the attempts that read it have told."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Engine, func, select

from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt, Job

if TYPE_CHECKING:  # `orch status` reads what is stored without it
    from orchestrator.config.job import JobConfig
    from orchestrator.estimates.text_size import TextSize

_NEWEST = 500
"""Attempts that are looked through for one of the same text."""
_ORDER = ("seed", "activations", "context_length")
"""Keys of `data` that change the order of a text, and nothing of how much there is but the rest of a context."""


def trainable_tokens() -> ColumnElement[int | None]:
    """Return the expression on an attempt for the tokens of one pass over its text; NULL before it has told.

    Attempts of versions before this count tell the length of the text alone, so that its special tokens, which do not
    train, count too: 0.1% of Python's source, and of a corpus of sentences some 5%.
    """
    text, length = Attempt.facts[("tokens", "trainable")], Attempt.facts[("tokens", "n_tokens")]
    return func.coalesce(text.as_integer(), length.as_integer() - Attempt.facts["heldout_tokens"].as_integer())


def trainable_of(facts: Mapping[str, Any]) -> int | None:
    """Return the same from the facts of an attempt."""
    text, heldout = facts.get("tokens") or {}, facts.get("heldout_tokens")
    if text.get("trainable") is not None:
        return int(text["trainable"])
    return None if heldout is None or "n_tokens" not in text else int(text["n_tokens"]) - int(heldout)


def text_sizes(engine: Engine | None, configs: Sequence["JobConfig"]) -> list["TextSize | None"]:
    """Return what is known, before they run, of the text of each config: counted by a job, or estimated.

    `engine`: None where there is no database yet.
    """
    from orchestrator.estimates.text_size import TextSize, estimate_text

    counted = _counted(engine) if engine is not None else {}

    known: dict[tuple[str, int], TextSize | None] = {}
    alike: dict[Hashable, TextSize | None] = {}
    """By what configs share as it is, without writing it as text."""
    found = []
    for config in configs:
        heldout = config.training.heldout_tokens
        parts = config.subject, config.data, heldout
        if parts not in alike:
            key = _text_key(config.model_dump(mode="json"))
            if (key, heldout) not in known:
                left = counted.get(key, 0) - heldout
                known[key, heldout] = TextSize(left, "") if left > 0 else estimate_text(config)
            alike[parts] = known[key, heldout]
        found.append(alike[parts])
    return found


def _counted(engine: Engine) -> dict[str, int]:
    """Return the tokens of the texts that the newest attempts read, held-out ones included."""
    training = select(Attempt.job_id, Attempt.facts).join(Job, Job.id == Attempt.job_id).where(Job.kind == "train")
    newest = training.order_by(Attempt.job_id.desc(), Attempt.attempt.desc())
    newest = newest.limit(_NEWEST)
    found: dict[str, int] = {}
    with reading(engine) as session:
        told = {row.job_id: row.facts for row in session.execute(newest) if row.facts}
        configs = session.execute(select(Job.id, Job.config).where(Job.id.in_(told))).all()
    for job_id, config in configs:
        facts = told[job_id]
        trainable = trainable_of(facts)
        if trainable is not None:
            found[_text_key(json.loads(config))] = trainable + int(facts["heldout_tokens"])
    return found


def _text_key(config: Mapping[str, Any]) -> str:
    """Return what decides which tokens a text has: the text, and the tokenizer, which is the subject's."""
    text = {key: value for key, value in config["data"].items() if key not in _ORDER}
    subject = config["subject"]
    return json.dumps([subject["model"], subject["revision"], text], sort_keys=True)
