"""Kernels divide their work among threads: here they have two, where other tests have one."""

import pytest


@pytest.fixture(autouse=True)
def _divided(two_threads: None) -> None:
    """Give every test of the folder two threads."""
