"""The activation source of a synthetic subject: each vector a pure function of (distribution, data.seed, position)."""

from collections.abc import Hashable, Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config import synthetic
from orchestrator.config.job import JobConfig
from orchestrator.config.synthetic import Planted
from orchestrator.errors import ConfigError
from worker.activations.source import Vectors
from worker.activations.stream import agreed, normalized
from worker.subject.model import Replace

BLOCK = 4096
"""Vectors that one generator draws: position p is row p % BLOCK of block p // BLOCK, whatever the batches are."""
_DIRECTIONS, _HELDOUT, _TRAINING = range(3)
_Rows = NDArray[np.float32]


class SyntheticActivations:
    """Vectors drawn when asked for: no model, no text, one hook point; normalised as a language model's are."""

    def __init__(self, model: str, device: torch.device | str = "cpu") -> None:
        """Take the name of the distribution, such as `synthetic:gaussian?d_model=64`."""
        self._model, self._device = synthetic.canonical(model), torch.device(device)
        self._recipe = synthetic.parse(model)
        self._dictionary = Dictionary(self._recipe) if isinstance(self._recipe, Planted) else None
        self._block = lru_cache(maxsize=2)(self._draw)  # a batch may cross the border of two

    def key(self, config: JobConfig) -> tuple[Hashable, ...]:
        """Return the only hook point there is.

        Raises:
            ConfigError: the config names another subject.
        """
        if config.subject.model != self._model:
            raise ConfigError(
                f"subject.model = {config.subject.model!r}, and the trainer draws from {self._model!r}",
                hint="Jobs share a stream of activations only where they read the same model.",
            )
        return (self._model,)

    def open_lens(self, config: JobConfig) -> None:
        """Do nothing: a config of a distribution has no lens."""

    def heldout(self, config: JobConfig) -> Vectors:
        """Return the fixed set every metric is measured on; the same for every data.seed.

        Raises:
            ConfigError: of one vector alone fvu is not defined.
        """
        n = config.training.heldout_tokens
        if n < 2:
            raise ConfigError(f"training.heldout_tokens = {n}: fvu needs two vectors", hint="Raise it.")
        return (self._vectors(_HELDOUT, 0, (0, n), config),)

    def sample(self, config: JobConfig, n: int) -> Vectors:
        """Return the first n vectors of training."""
        return (self._vectors(_TRAINING, config.data.seed, (0, n), config),)

    def stream(self, configs: Sequence[JobConfig], *, start_tokens: int) -> Iterator[tuple[Vectors, ...]]:
        """Yield, without end, one batch for each config, from a position on; equal normalisations share a tensor.

        Raises:
            ConfigError: the configs do not read the same vectors.
        """
        config = agreed(configs)
        for start in count(start_tokens, config.training.batch_tokens):
            span = start, start + config.training.batch_tokens
            by_kind = {one.sae.normalize: one for one in configs}
            made = {kind: (self._vectors(_TRAINING, one.data.seed, span, one),) for kind, one in by_kind.items()}
            yield tuple(made[one.sae.normalize] for one in configs)

    def run_patched(self, config: JobConfig, input_ids: Tensor, replacements: Sequence[Replace]) -> Tensor:
        """Refuse: no model runs.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"subject.model = {self._model!r}: a distribution has no logits that replaced activations could change",
            hint="Such metrics need a language model: name one with subject.model.",
        )

    def flops(self, configs: Sequence[JobConfig]) -> float:
        """Return 0: no model runs."""
        return 0.0

    def facts(self, config: JobConfig) -> dict[str, Any]:
        """Return what a job's record says of what it read."""
        subject = {"class": type(self._recipe).__name__, "site": "drawn"}
        sha256 = synthetic.fingerprint(self._recipe)
        return {"subject": subject | {"sha256": sha256}, "flops_subject_per_token": 0.0}

    def _vectors(self, stage: int, seed: int, span: tuple[int, int], config: JobConfig) -> Tensor:
        rows = torch.from_numpy(self.rows(stage, seed, *span)).to(self._device)
        return normalized(rows, config.sae.normalize)

    def rows(self, stage: int, seed: int, start: int, stop: int) -> _Rows:
        """Return the vectors at some positions: (stop − start, d_model)."""
        first, last = start // BLOCK, -(-stop // BLOCK)
        blocks = [self._block(stage, seed, number) for number in range(first, last)]
        return np.concatenate(blocks)[start - first * BLOCK : stop - first * BLOCK]

    def _draw(self, stage: int, seed: int, number: int) -> _Rows:
        random = _generator(self._recipe.seed, stage, seed, number)
        if self._dictionary is not None:
            return self._dictionary.rows(random, BLOCK)
        return random.standard_normal((BLOCK, self._recipe.d_model), dtype=np.float32)


class Dictionary:
    """A planted dictionary, from which vectors are drawn."""

    def __init__(self, recipe: Planted) -> None:
        """Draw its directions."""
        self.recipe = recipe
        shape = recipe.latents, recipe.d_model
        self.directions: _Rows = _generator(recipe.seed, _DIRECTIONS).standard_normal(shape, dtype=np.float32)
        """(latents, d_model), of unit norm, the frequent ones first."""
        self.directions /= np.linalg.norm(self.directions, axis=1, keepdims=True)
        self._cumulative = np.cumsum(np.arange(1, recipe.latents + 1, dtype=np.float64) ** -recipe.exponent)

    def choose(self, random: np.random.Generator, n: int) -> NDArray[np.int64]:
        """Return the directions that n vectors are made of, counted from 0: (n, k)."""
        drawn = random.random((n, self.recipe.k)) * self._cumulative[-1]
        found: NDArray[np.int64] = np.searchsorted(self._cumulative, drawn, side="right")
        return found

    def rows(self, random: np.random.Generator, n: int) -> _Rows:
        """Return n vectors: (n, d_model)."""
        chosen = self.choose(random, n)
        strength = random.random(chosen.shape, dtype=np.float32) + np.float32(0.5)
        rows = random.standard_normal((n, self.recipe.d_model), dtype=np.float32) * np.float32(self.recipe.noise)
        for draw in range(self.recipe.k):  # one after another: the sum has one order on every machine
            rows += strength[:, draw, None] * self.directions[chosen[:, draw]]
        return rows


def _generator(*seeds: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seeds)))
