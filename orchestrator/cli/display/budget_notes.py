"""What a budget cannot do: measure dead latents before their window has passed, or read a text that is too short once.

A line each, for jobs that differ in nothing else.
"""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.cli.display.formats import passes
from orchestrator.formatting import count, whole

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig
    from orchestrator.estimates.text_size import TextSize

_MOST_LINES = 3
_WINDOW_SHARE = 8
"""The window that is proposed is the budget divided by this: numerics 3."""


class BudgetNote(NamedTuple):
    """A sentence, and what to do."""

    text: str
    hint: str


def dead_note(config: "JobConfig", d_model: int | None) -> BudgetNote | None:
    """Say that dead latents are not measured and AuxK never acts; None where they are, or that is not known yet."""
    from orchestrator.results import can_measure, dead_window

    if can_measure(config, d_model):
        return None
    window, budget = dead_window(config, d_model), config.training.max_tokens
    aux = "AuxK never acts" if config.sae.aux_coef > 0 else "AuxK is off"
    text = f"a latent is dead after {count(window)} silent tokens, the budget is {count(budget)}"
    share = max(1, budget // _WINDOW_SHARE)
    hint = f"Set training.dead_after_tokens below the budget, such as {whole(share).replace(',', '_')}"
    return BudgetNote(
        f"dead latents cannot be measured, and {aux}: {text}.",
        f"{hint}, or raise training.max_tokens above {count(window)}.",
    )


def passes_text(text: "TextSize", budget: int) -> str:
    """Say how many passes over its text a budget is: `43 passes over 12.0k trainable tokens`."""
    number = f"{passes(text.passes(budget))} pass{'' if text.passes(budget) == 1 else 'es'}"
    bound = {"at most": "at least ", "about": "about "}.get(text.how, "")
    size = f"{text.how} {count(text.trainable_tokens)}".strip()
    return f"{bound}{number} over {size} trainable tokens"


def passes_note(config: "JobConfig", text: "TextSize | None") -> BudgetNote | None:
    """Warn of a budget that reads its text more than once; None where it does not, or nothing is known."""
    budget = config.training.max_tokens
    if text is None or text.passes(budget) <= 1:
        return None
    return BudgetNote(
        f"the text is read again and again: a budget of {count(budget)} is {passes_text(text, budget)}.",
        "Give more text (data.source, data.max_tokens), or lower training.max_tokens.",
    )


def told_once(notes: "Iterable[tuple[BudgetNote | None, int]]") -> list[BudgetNote]:
    """Return each note once, with the number of jobs it is of; the commonest of many.

    `notes`: of kinds of jobs, with the number of each.
    """
    tally, total = Counter[BudgetNote](), 0
    for note, number in notes:
        total += number
        if note is not None:
            tally[note] += number
    found = [
        note if number == total else BudgetNote(f"{number} of {total} jobs: {note.text}", note.hint)
        for note, number in tally.most_common(_MOST_LINES)
    ]
    more = len(tally) - len(found)
    return found + ([BudgetNote(f"and {more} more of this kind, at other budgets.", "")] if more > 0 else [])
