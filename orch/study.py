"""One database and its data folder, from Python: read, load, enqueue, wait."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from orch.evaluations import Evaluations, Selector, listed
from orch.frames import frame
from orch.lenses import Lenses
from orchestrator import settings as settings_module
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame
    from sqlalchemy import Engine

    from orch.subject import Subject
    from orchestrator.results import JobRow
    from orchestrator.saes import SaeEntry
    from orchestrator.scaling.types import LawName
    from worker.sae.inference import InferenceSae

_SWEEP = "sweep:"


def open(*, home: str | Path | None = None) -> "Study":
    """Open the database of the settings in force: those of the command line, with `home` in place of ORCH_HOME.

    Environment variables (ORCH_HOME, ORCH_DATABASE_URL, …) go before the nearest `orch.toml`, and that before defaults.
    In the embedded mode the database is made where there is none. Workers may run meanwhile.

    Raises:
        ConfigError: a setting is not valid.
        StorageError: the database is out of reach, or its schema is of another version.
    """
    from orchestrator.database.schema import open_database

    environ = dict(os.environ) if home is None else {**os.environ, "ORCH_HOME": str(home)}
    settings = settings_module.load(environ=environ)
    return Study(settings, open_database(settings))


def load(
    folder: str | Path, *, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype" = "float32"
) -> "InferenceSae":
    """Return the SAE of a folder, in any format that is known; no database is opened: `Study.sae`."""
    from orch.sae_files import load_folder

    return load_folder(Path(folder).expanduser(), device=device, dtype=dtype)


class Study(Evaluations, Lenses):
    """The jobs, curves, fits, SAEs and lenses of one database. Made by `orch.open`; close it, or use it in a `with`.

    What takes selectors takes numbers of jobs and names of sweeps, in any number; none: all. Whatever goes wrong is an
    `OrchError` with a sentence and what to do (`orchestrator.errors`): `NotFound` of a name that is not there, with
    near ones; `StorageError` of a database out of reach; `ConfigError` of a value that is not valid.
    """

    def __init__(self, settings: Settings, engine: "Engine") -> None:
        """Read by these settings, through this engine."""
        super().__init__(settings, engine)

    def jobs(
        self, *selectors: Selector, states: Sequence[str] | None = None, where: Mapping[str, Any] | None = None,
        best_by: Sequence[str] = (), sort: str = "",
    ) -> "DataFrame":  # fmt: skip
        """Return jobs by id, or by `sort`: the columns of `orch status -o csv`, each swept key one of them.

        `where`, `best_by` and `sort` are those of `orch status`: `where={"sae.k": [8, 16]}`, `best_by=["n", "k"]`,
        `sort="-fvu"`. Times are in UTC; spans in seconds; lengths in tokens.

        Raises:
            NotFound: a selector means nothing; the message names what is near.
            ConfigError: a key or a state that there is not.
        """
        from orchestrator import results
        from orchestrator.results.choice import Choice, checked, choose

        choice = checked(Choice(listed(where), {}, best_by, sort))
        _check_states(states)
        ids = _job_ids(self._engine, selectors) if selectors else None
        if choice.is_whole:
            rows = results.jobs(self._engine, ids=ids, states=states)
        else:
            rows = choose(self._engine, choice, ids=ids, states=states)
        return _job_frame(self.settings, rows)

    def curves(self, *selectors: Selector) -> "DataFrame":
        """Return the points of jobs' loss curves, by job and tokens: `job_id`, `sweep`, `n_latents`, `k`, and `Point`.

        What was not measured, or not finite, is NaN.

        Raises:
            NotFound: a selector means nothing.
        """
        from orchestrator import results
        from orchestrator.curves.point import Point

        rows = results.jobs(self._engine, ids=_job_ids(self._engine, selectors) if selectors else None)
        points = results.curves(self._engine, [row.id for row in rows])
        records = [
            {"job_id": row.id, "sweep": row.sweep, "n_latents": row.n_latents, "k": row.k} | point._asdict()
            for row in rows
            for point in points[row.id]
        ]
        own = {"job_id": int, "sweep": str, "n_latents": int | None, "k": int}
        return frame(records, own | Point.__annotations__)

    def fits(self, *sweeps: str, law: "LawName | None" = None, superseded: bool = False) -> "DataFrame":
        """Return fitted laws, newest last: each coefficient `b` a column, with its 90% interval `b_low`, `b_high`.

        `law`: ln, lc, lnk, tn, lr, ls, lnt or lrt. `superseded`: also those that a newer fit replaced.

        Raises:
            NotFound: there is no such sweep.
        """
        from orchestrator import results
        from orchestrator.fits import store
        from orchestrator.scaling.types import StoredFit

        known = [row.name for row in results.sweeps(self._engine)]
        names = [name.removeprefix(_SWEEP) for name in sweeps]
        if unknown := [name for name in names if name not in known]:
            results.find(self._engine, unknown)  # says what is near
        read = store.history if superseded else store.newest
        found = {one.id: one for name in names or known for one in read(self._engine, sweep=name, law=law)}
        return frame([found[number].flat() for number in sorted(found)], StoredFit.flat_types())

    def saes(self, *selectors: Selector) -> "DataFrame":
        """Return SAEs, trained here and brought in: the columns of `orch sae list -o csv`.

        Raises:
            NotFound: a selector means nothing, or has no SAE.
        """
        from orchestrator import results, saes

        asked = [str(one) for one in selectors]
        rows = results.find_saes(self._engine, asked) if asked else saes.entries(self._engine)
        return frame(
            [replace(row, uri=self.settings.artifact(row.uri)).flat() for row in rows], saes.SaeEntry.flat_types()
        )

    def sae(
        self, selector: Selector, *, device: "str | torch.device" = "cpu", dtype: "str | torch.dtype" = "float32"
    ) -> "InferenceSae":
        """Return one SAE as a torch module, on raw activations: `encode`, `encode_sparse`, `decode`, and called itself.

        It has what SAEBench asks of an SAE: W_enc (d_model, n_latents), W_dec (n_latents, d_model) with rows of norm 1,
        b_enc, b_dec, cfg, device, dtype.

        Raises:
            NotFound: there is no such SAE, or its folder is gone.
            ConfigError: the selector means several; the device or dtype is none; its files were changed.
        """
        from orch.sae_files import load_entry, load_folder

        folder = _folder(selector)
        if folder is not None:
            return load_folder(folder, device=device, dtype=dtype)
        return load_entry(_sae_entry(self._engine, selector), self.settings, device=device, dtype=dtype)

    def subject(self, selector: Selector, *, device: "str | torch.device" = "cpu") -> "Subject":
        """Return the language model that an SAE reads, with its tokenizer, at the place where it reads.

        Text becomes tokens as in training: without special tokens of the tokenizer's, behind a BOS token where
        `data.prepend_bos` says so.

        Raises:
            NotFound: there is no such SAE.
            SubjectError: the model is not there, or the SAE reads none.
            ConfigError: the selector means several, or the device is none.
        """
        from orch.subject import Subject, of_facts, of_job

        folder = _folder(selector)
        if folder is not None:
            return Subject.load(of_facts(load(folder).facts), device=device)
        entry = _sae_entry(self._engine, selector)
        if entry.job_id is None:
            return Subject.load(of_facts(entry.facts), device=device)
        from orchestrator.results.stored_configs import trained_config

        return Subject.load(of_job(trained_config(self._engine, entry.job_id)), device=device)

    def enqueue(
        self, source: str | Path | Mapping[str, Any], *overrides: str, name: str | None = None,
        priority: int | None = None, allow_duplicate: bool = False,
    ) -> list[int]:  # fmt: skip
        """Put the jobs of a sweep into the queue, as `orch enqueue`; return their numbers, with those there already.

        `source`: a path, the text of a sweep file, or its keys and values as a dict. A str with a line break, or a
        colon followed by a space, is text. Overrides are written as on the command line: `"sae.k=16,32"`.

        Raises:
            ConfigError: the sweep is not valid; says where.
        """
        from orchestrator import queue
        from orchestrator.dispatch import NOT_WOKEN, wake
        from orchestrator.enqueueing import jobs_of, read_sweep, with_lenses
        from orchestrator.sweep import check_name

        given = Path(source) if isinstance(source, str) and not ("\n" in source or ": " in source) else source
        called = None if name is None else check_name(name)
        sweep = with_lenses(self._engine, read_sweep(given, overrides, settings=self.settings, name=called))
        added = queue.enqueue(self._engine, sweep, allow_duplicate=allow_duplicate, priority=priority)
        if not wake(self.settings, [*(one for one in added.job_ids if one is not None), *added.evaluations]):
            warnings.warn(NOT_WOKEN, stacklevel=2)
        return jobs_of(self._engine, sweep, added.job_ids)

    def wait(self, *selectors: Selector, timeout: float | None = None) -> "DataFrame":
        """Wait until jobs, evaluations too, have ended, and return them as `jobs`; `timeout` in seconds.

        A worker must run.

        Raises:
            JobFailed, JobCancelled: one of them did not succeed.
            WaitTimedOut: some had not ended in time.
            NotFound: a selector means nothing.
        """
        from orchestrator.waiting import as_they_end, fault_of

        ids = _job_ids(self._engine, selectors)
        ended = list(as_they_end(self._engine, ids, timeout=timeout))
        fault = fault_of(ended)
        if fault is not None:
            raise fault
        return _job_frame(self.settings, sorted(ended, key=lambda row: row.id))

    def close(self) -> None:
        """Give the connections to the database back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"orch.open(): {settings_module.place_of(self.settings.database)}"


def _job_frame(settings: Settings, rows: "Sequence[JobRow]") -> "DataFrame":
    from orchestrator import results

    records = results.flat_jobs(results.located(settings, rows))
    return frame(records, {field.name: field.type for field in fields(results.JobRow)})


def _job_ids(engine: "Engine", selectors: Sequence[Selector]) -> list[int]:
    from orchestrator import results

    return results.find(engine, [str(one).removeprefix(_SWEEP) for one in selectors])


def _sae_entry(engine: "Engine", selector: Selector) -> "SaeEntry":
    from orchestrator import results

    found = results.find_saes(engine, [str(selector)])
    if len(found) > 1:
        labels = ", ".join(entry.label for entry in found[:4]) + (", …" if len(found) > 4 else "")
        raise ConfigError(f"{selector!r} means {len(found)} SAEs: name one of them", hint=f"Such as {labels}")
    return found[0]


def _folder(selector: Selector) -> Path | None:
    """Return the folder that a selector means; None where it means a row of the table."""
    from orchestrator.results.selectors import is_path

    means_path = isinstance(selector, Path) or is_path(str(selector))
    return Path(str(selector)).expanduser() if means_path else None


def _check_states(states: Sequence[str] | None) -> None:
    from orchestrator.job_states import STATES

    if wrong := [state for state in states or () if state not in STATES]:
        raise ConfigError(f"{wrong[0]!r} is not a state", hint=f"States: {', '.join(STATES)}")
