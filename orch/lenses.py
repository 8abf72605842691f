"""Tuned lenses, from Python: train them, list them, load one."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from orch.frames import frame
from orchestrator.errors import NotFound
from orchestrator.settings import Settings

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame
    from sqlalchemy import Engine

    from worker.lens.tuned_lens import TunedLens


class Lenses:
    """What a `Study` does with tuned lenses."""

    settings: Settings
    _engine: "Engine"

    def train_lens(
        self, subject: str | Path | None = None, *, name: str | None = None, config: Mapping[str, Any] | None = None,
        tokens: int | None = None, data: str | None = None, lr: float | None = None, again: bool = False,
    ) -> int:  # fmt: skip
        """Queue a job that trains a tuned lens of a language model, as `orch lens train`; return its number.

        `config` is the content of a file for `orch lens train --config`; what is given beside it comes first. The same
        config is not queued twice, but with `again`.

        Raises:
            ConfigError: a key or value is not valid, or the name.
            StateError: there is a lens of that name.
        """
        from orchestrator import queue
        from orchestrator.dispatch import NOT_WOKEN, wake
        from orchestrator.sweep.lens_config import lens_config

        options = {"subject": None if subject is None else str(subject), "tokens": tokens, "data": data, "lr": lr}
        asked = queue.train_lens(
            self._engine, lens_config(config or {}, options, settings=self.settings), name=name, again=again
        )
        assert asked.job_id is not None, "it is no dry run"
        if asked.is_new and not wake(self.settings, [asked.job_id]):
            warnings.warn(NOT_WOKEN, stacklevel=2)
        return asked.job_id

    def lenses(self) -> "DataFrame":
        """Return every lens, trained here and brought in: the columns of `orch lens list -o csv`.

        `kl` is the mean over all layers but the last, nats per token; `kls`, `logit_lens_kls` and `conditions` are
        lists by layer. Of one in training `tokens_seen` and the KLs are how far it is.
        """
        from orchestrator import lenses
        from orchestrator.lenses.lens_progress import so_far

        rows = so_far(self._engine, lenses.entries(self._engine))
        records = [asdict(replace(row, uri=row.uri and self.settings.artifact(row.uri))) for row in rows]
        return frame(records, get_type_hints(lenses.LensEntry))

    def lens(self, selector: int | str, *, device: "str | torch.device" = "cpu") -> "TunedLens":
        """Return a lens by its name, its job's number or its content id: `into`, `back` and `condition` take a layer.

        Raises:
            NotFound: there is no such lens, or it is not trained.
            ConfigError: its files are gone or were changed; or the device is none.
            StorageError: the folder of lenses is not to be seen from here.
        """
        from orch.placement import device_of
        from orchestrator import lenses
        from orchestrator.config.lens.facts import LENSES
        from worker.lens.opening import read_lens

        entry = lenses.named(self._engine, str(selector))
        if entry.sha256 is None:
            raise NotFound(
                f"the lens {entry.label} is not there: job {entry.job_id} is {entry.outcome or entry.state}",
                hint="study.lenses() shows how far each is; study.wait(JOB) waits for one.",
            )
        return read_lens(self.settings.artifacts_folder / LENSES, entry.sha256).to(device_of(device))
