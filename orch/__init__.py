"""The Python door: jobs, curves, fits and SAEs as data frames, SAEs and their subjects as torch modules.

It holds no logic of its own: it joins `orchestrator` and `worker`, and nothing imports it. Start with `orch.open`.
"""

from orch.study import Study, load, open

__all__ = ["Study", "load", "open"]
