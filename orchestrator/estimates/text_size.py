"""How many tokens of a text train, before a job has read it: bounds and estimates. Reads sizes of files, no text."""

from itertools import islice
from typing import NamedTuple

from orchestrator.config import synthetic
from orchestrator.config.job import STANDARD_LIBRARY, JobConfig
from orchestrator.config.text_files import listed

BYTES_PER_TOKEN = 3.5
"""Of Python's source with the 4,096 tokens of the subject that ships here; of English 2.5 with these, some 4 with
50,000: an estimate of passes is within a factor of 1.5.
"""
_SUFFIX = ".txt"
_MOST_FILES = 1000


class TextSize(NamedTuple):
    """How many tokens of its text a job trains on in one pass."""

    trainable_tokens: int
    """Without the held-out ones."""
    how: str
    """`` where a job has counted them; `at most`, `about`: a bound, an estimate by the size of the files."""

    def passes(self, tokens: int) -> float:
        """Return how many passes over the text so many training tokens are."""
        return tokens / self.trainable_tokens


def estimate_text(config: JobConfig) -> TextSize | None:
    """Return what is known of a text's size without reading it; None: nothing, or there is no text.

    At most a thousand `.txt` files are looked at; of other files the size says little. `data.max_tokens` is a bound.
    """
    if synthetic.is_synthetic(config.subject.model):
        return None
    n_bytes = _bytes_of(config.data.source)
    estimate = None if n_bytes is None else int(n_bytes / BYTES_PER_TOKEN)
    limit = config.data.max_tokens
    if limit is not None and (estimate is None or limit <= estimate):
        return _without_heldout(limit, config, "at most")
    return None if estimate is None else _without_heldout(estimate, config, "about")


def _without_heldout(tokens: int, config: JobConfig, how: str) -> TextSize | None:
    left = tokens - config.training.heldout_tokens
    return TextSize(left, how) if left > 0 else None


def _bytes_of(source: str) -> int | None:
    """Return the bytes of `.txt` files; None where there is anything else, or too much to look at."""
    if source == STANDARD_LIBRARY:
        return None
    if "**" in source:  # it may be the whole disk
        return None
    try:
        found = list(islice(listed(source), _MOST_FILES + 1))
        if not found or len(found) > _MOST_FILES or any(file.suffix.lower() != _SUFFIX for file in found):
            return None
        return sum(file.stat().st_size for file in found)
    except OSError:  # not to be read, or gone since it was listed: the job that reads it says what is there
        return None
