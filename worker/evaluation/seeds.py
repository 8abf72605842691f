"""Seeds of their own for everything that is drawn, so that nothing depends on what else was drawn before it."""

import hashlib


def seed_of(name: str, seed: int) -> int:
    """Return a seed for a name, below 2⁶⁴. On a CPU torch reads 32 bits of it alone: those differ, too."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big")
