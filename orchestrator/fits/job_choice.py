"""Which jobs of some sweeps a fit, a forecast or a plan is to be of."""

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.errors import ConfigError
from orchestrator.scaling.fit.options import GROUNDS, FitOptions, check_jobs_exist
from orchestrator.scaling.types import JobMeasurement


class JobChoice(NamedTuple):
    """What a person said of the jobs that are meant; None: any."""

    subject: str | None = None
    hook: str | None = None
    layer: int | None = None
    """As configs name it: another way to say the hook point, where jobs read one site of the layer alone. Rows must be
    `measured` at it, so that an SAE of several layers counts as one of them."""
    data: str | None = None
    activation: str | None = None

    def grounds(self, rows: Sequence[JobMeasurement]) -> dict[str, str | None]:
        """Return what jobs must be of, by the names of `GROUNDS`, the layer as the hook point that is read there.

        Raises:
            ConfigError: no job is of that, or jobs read several hook points of the layer; names those there are.
        """
        named = {name: getattr(self, name) for name in GROUNDS}
        if self.layer is not None:
            there = sorted({row.hook for row in rows if row.layer == self.layer})
            meant = [hook for hook in there if self.hook in (None, hook)]
            if len(meant) != 1:
                raise self._no_one_hook(rows, there)
            named["hook"] = meant[0]
        check_jobs_exist(rows, FitOptions(**named))
        return named

    def of(self, rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
        """Return the jobs that are meant.

        Raises:
            ConfigError: as `grounds` does.
        """
        wanted = {name: value for name, value in self.grounds(rows).items() if value is not None}
        return [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]

    def _no_one_hook(self, rows: Sequence[JobMeasurement], there: Sequence[str]) -> ConfigError:
        if len(there) > 1 and self.hook is None:
            return ConfigError(
                f"--layer {self.layer}: jobs read several hook points there: {', '.join(map(repr, there))}",
                hint=f"Choose one: --hook {there[0]!r}",
            )
        named = {layer for row in rows for layer in (row.layer, *row.layers) if layer is not None}
        layers = ", ".join(map(str, sorted(named))) or "none is named"
        at = f" at {self.hook!r}" if self.hook is not None and there else ""
        return ConfigError(f"--layer {self.layer}: no job is of it{at}", hint=f"Layers: {layers}.")


ANY = JobChoice()
"""Every job."""
