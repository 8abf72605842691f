"""What is known of a tuned lens beside its weights: the model that it belongs to."""

import re

from orchestrator.config.job import Dtype, Part
from orchestrator.config.value_types import PositiveInt, Text

LENSES = "lenses"
"""Folder of the lenses among the artifacts: one folder in it per lens, named by its content id."""
_CONTENT_ID = re.compile(r"[0-9a-f]{64}")


def is_content_id(lens: str) -> bool:
    """Say whether this is the content id of a lens, a sha256 in hex, and no name."""
    return _CONTENT_ID.fullmatch(lens) is not None


class LensFacts(Part):
    """The language model a tuned lens is of. Its translators are of the outputs of that model's blocks."""

    model: Text
    """Model id, a folder, or the model that ships with this project: as `subject.model` of a config."""
    revision: Text | None = None
    """Branch, tag or commit of a model id."""
    fingerprint: Text
    """sha256 of the model's config and weight files: whatever the model is called, these are the weights."""
    dtype: Dtype = "float32"
    """Precision of the model's forward pass as the lens was trained."""
    n_layers: PositiveInt
    """Blocks of the model."""
    d_model: PositiveInt
    """Width of the residual stream."""
