"""Python's search for garbage while libraries and models are loaded: what is loaded then is kept to the end."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS = 200_000
"""Between two searches. With Python's own 700 they took a sixth of the time in which torch and transformers load, and
with 50,000 a twelfth of `orch status`."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for garbage rarely within this block, and as before behind it."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
