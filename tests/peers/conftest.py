"""The other programs, and real activations: the tier runs where all of them can be imported (`make peers`)."""

import importlib
import importlib.util
import inspect
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.job import SubjectConfig
from worker.subject.model import capture, load

PEERS = ("sae_lens", "sparsify", "dictionary_learning", "sae_bench")
ARE_HERE = all(importlib.util.find_spec(name) is not None for name in PEERS)
_CONTEXTS, _CONTEXT = 16, 128


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in (one for one in items if one.path.parent.name == "peers"):
        item.add_marker(pytest.mark.filterwarnings("ignore"))
        if not ARE_HERE:
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(PEERS)}: make peers"))


@pytest.fixture
def peer() -> Callable[[str], Any]:
    """Return what imports a module of another program, its warnings aside."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

    def module(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)

    return module


@pytest.fixture(scope="session")
def activations() -> Tensor:
    """Return raw activations of the language model that ships here, on text it was trained on the like of."""
    subject = load(SubjectConfig())
    text = "\n".join(inspect.getsource(module) for module in (json, importlib.util, warnings))
    ids = subject.tokenizer(text)["input_ids"][: _CONTEXTS * _CONTEXT]
    found = capture(subject, torch.tensor(ids).view(_CONTEXTS, _CONTEXT))
    return found.reshape(-1, found.shape[-1]).float()
