"""The token that is put before a text, or in the place of one of its tokens: it stands for no text in particular."""

from typing import Any

_TEXTS = (" _", "_", " ")
"""The first is what the paper's authors used (GPT-2's id 4808)."""


def default_pad(tokenizer: Any) -> int:
    """Return the token of " _" where that is one token, else of "_", else of " ", else the first that is no mark."""
    special = {*tokenizer.all_special_ids}
    for text in _TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] not in special:
            return int(ids[0])
    return min(set(range(len(tokenizer))) - special)
