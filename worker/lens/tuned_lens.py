"""A tuned lens: one affine translator for the output of each block, applied, undone, kept as a checked folder."""

import json
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from orchestrator.bounded_file import read_text
from orchestrator.config.lens.facts import LENSES, LensFacts
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.storage.activation_caches import PARTIAL
from worker import checked_folder
from worker.formats.tensor_file import write_tensors

_ABOUT, _TENSORS = "lens.json", "lens.safetensors"
_FORMAT = 1
_MOST_CONDITION = 1 / torch.finfo(torch.float32).eps
"""From here on the rounding of one float32 may be as large as what is solved for."""

Factors = tuple[Tensor, Tensor]


class LensFile(NamedTuple):
    """A lens on disk."""

    uri: str
    """Its folder."""
    sha256: str
    """Its content id: of the folder's manifest, which holds the sha256 of every other file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedLens:
    """One affine translator for the output of each block: h' = h + A h + b; for the last block the identity.

    Source: Belrose et al. 2023, section 3. Residual parametrisation: A = 0, b = 0 is the logit lens.
    """

    weights: Float[Tensor, "n_layers d_model d_model"]
    """A of the output of each block, float32; zeros for the last block."""
    biases: Float[Tensor, "n_layers d_model"]
    """b of the output of each block, float32; zeros for the last block."""
    facts: LensFacts
    _factors: dict[int, Factors] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse tensors that do not fit the model, or are not finite.

        Raises:
            ConfigError: says which.
        """
        n, d = self.facts.n_layers, self.facts.d_model
        if self.weights.shape != (n, d, d) or self.biases.shape != (n, d):
            raise ConfigError(
                f"the translators are {tuple(self.weights.shape)} and {tuple(self.biases.shape)}, and "
                f"{self.facts.model} has {n} blocks of width {d}",
                hint="The lens is of another model.",
            )
        if self.weights.dtype != torch.float32 or self.biases.dtype != torch.float32:
            raise ConfigError(f"the translators are {self.weights.dtype}, and a lens is kept in float32")
        for layer in range(n):
            if not (self.weights[layer].isfinite().all() and self.biases[layer].isfinite().all()):
                raise ConfigError(f"the translator of layer {layer} holds numbers that are not finite")
        if self.weights[-1].any() or self.biases[-1].any():
            raise ConfigError("the translator of the last layer is not the identity: its output is what all others fit")

    def into(self, layer: int, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Map the output of block `layer` to lens space: h' = h + A h + b, in float32."""
        if self._is_identity(layer):
            return x
        return x + torch.nn.functional.linear(x, self.weights[layer], self.biases[layer])

    def back(self, layer: int, y: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Map lens space to the output of block `layer`: the h of (I + A) h = h' − b, by LU factors, not an inverse.

        What is rounded in h' grows by up to `condition` on the way.
        """
        if self._is_identity(layer):
            return y
        if layer not in self._factors:
            self._factors[layer] = torch.linalg.lu_factor(self._map(layer))
        rows = (y - self.biases[layer]).reshape(-1, self.facts.d_model)
        solved: Tensor = torch.linalg.lu_solve(*self._factors[layer], rows.T)
        return solved.T.reshape(y.shape)

    def back_direction(self, layer: int, v: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Return what a step along `v` in lens space is in the output of block `layer`: the u of (I + A) u = v."""
        return self.back(layer, v + self.biases[layer])

    def flops(self, layer: int) -> int:
        """Return the FLOPs of mapping one vector there: 2·d_model², or none."""
        return 0 if self._is_identity(layer) else 2 * self.facts.d_model**2

    def condition(self, layer: int) -> float:
        """Return the condition number of I + A in the 2-norm; infinity where it is singular."""
        return 1.0 if self._is_identity(layer) else float(torch.linalg.cond(self._map(layer).double()))

    def check_invertible(self) -> tuple[float, ...]:
        """Return the condition number of every layer's map.

        Raises:
            ConfigError: one is singular to float32.
        """
        conditions = tuple(map(self.condition, range(self.facts.n_layers)))
        for layer, condition in enumerate(conditions):
            if not condition < _MOST_CONDITION:
                raise ConfigError(
                    f"the translator of layer {layer} is singular (condition number {condition:.3g}): what it maps to "
                    "lens space cannot be mapped back",
                    hint="Train the lens anew, with a lower learning rate.",
                )
        return conditions

    def to(self, device: torch.device | str) -> "TunedLens":
        """Return the lens on a device."""
        return replace(self, weights=self.weights.to(device), biases=self.biases.to(device))

    def write(self, folder: Path) -> str:
        """Write the lens as a checked folder, in place of what is there; return its content id.

        Raises:
            StorageError: the disk is full or refuses; nothing half-written stays.
        """
        about = {"format": _FORMAT, **self.facts.model_dump(mode="json")}

        def fill(partial: Path) -> None:
            write_tensors(partial / _TENSORS, {"weights": self.weights, "biases": self.biases})
            checked_folder.write_text(partial / _ABOUT, json.dumps(about, indent=2, sort_keys=True))

        return checked_folder.write_folder(folder, fill)

    def store(self, artifacts: Path) -> LensFile:
        """Write the lens among the artifacts, in the folder that its content names; a whole one that is there stays.

        Raises:
            StorageError: as `write`.
        """
        lenses = artifacts / LENSES
        beside = lenses / f"{uuid.uuid4().hex}{PARTIAL}"
        sha256 = self.write(beside)
        target = lenses / sha256
        try:
            checked_folder.verify(target)
        except CheckpointError:
            shutil.rmtree(target, ignore_errors=True)
            with suppress(OSError):  # another process has put the same lens there meanwhile
                beside.rename(target)
                checked_folder.flush(lenses)
        shutil.rmtree(beside, ignore_errors=True)
        return LensFile(str(target.absolute()), sha256)

    @classmethod
    def read(cls, folder: Path, *, sha256: str | None = None) -> "TunedLens":
        """Return the lens that `write` wrote.

        Raises:
            CheckpointError: missing, damaged, or not the one that `sha256` names.
        """
        found = checked_folder.verify(folder)
        if sha256 not in (None, found):
            raise checked_folder.unreadable(folder, ValueError(f"its content is {found}, and {sha256} is asked for"))
        try:
            about = json.loads(read_text(folder / _ABOUT, what="the description of a lens"))
            facts = LensFacts(**{name: about[name] for name in LensFacts.model_fields})
            tensors = load_file(folder / _TENSORS)
            return cls(weights=tensors["weights"], biases=tensors["biases"], facts=facts)
        except (OSError, SafetensorError, ConfigError, ValidationError, ValueError, KeyError, TypeError) as error:
            raise checked_folder.unreadable(folder, error) from error

    def _is_identity(self, layer: int) -> bool:
        return layer == self.facts.n_layers - 1

    def _map(self, layer: int) -> Tensor:
        identity = torch.eye(self.facts.d_model, dtype=self.weights.dtype, device=self.weights.device)
        return identity + self.weights[layer]
