"""Where the results come from: configs, versions, commits, subjects, the sweep's file, the database and its time."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.config.flat_keys import flatten, varied_keys
from orchestrator.formatting import named
from orchestrator.report.html import Head, Html, element, grid, job_links
from orchestrator.report.page_data import Contents, SweepText
from orchestrator.scaling.plots.sampling import sampled, told

_SHOWN_ALREADY = {"sae.n_latents", "sae.k", "optimizer.lr", "training.seed"}
"""What the table of jobs has a column for."""


def provenance(contents: Contents) -> list[Html]:
    """Return the blocks of the last part of the page."""
    configs = {job: flatten(origin.config) for job, origin in contents.origins.items()}
    varied = set(varied_keys(configs.values()))
    return [
        _facts(contents),
        element("h3", "The config all jobs share"),
        _shared(list(configs.values()), varied),
        *_differing(configs, varied),
        *(_sweep_file(sweep) for sweep in contents.sweeps),
    ]


def _facts(contents: Contents) -> Html:
    rows: list[tuple[str, Html | str]] = [
        ("orch", f"{contents.version}; the page is of {moment(contents.at)}, by the database's clock"),
        ("database", contents.database),
    ]
    rows += [(f"sweep {sweep.name}", _sweep_line(sweep)) for sweep in contents.sweeps]
    groups = {
        "trained by commit": _by(contents, lambda origin: origin.commit),
        "versions": _by(contents, lambda origin: ", ".join(f"{n} {v}" for n, v in origin.versions.items()) or None),
        "subject's weights (sha256)": _by(contents, lambda origin: origin.subject_sha),
    }
    rows += [(name, _with_jobs(found)) for name, found in groups.items() if found]
    devices: dict[str, list[int]] = {}
    for row in contents.rows:
        if row.device:
            threads = f", {named(row.threads, 'thread')}" if row.threads else ""
            devices.setdefault(f"{row.device}{threads}", []).append(row.job_id)
    rows += [("devices", _with_jobs(devices))] if devices else []
    return grid([Head("what", right=False), Head("which", right=False)], [(None, row) for row in rows], class_="facts")


def _by(contents: Contents, what: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for job, origin in contents.origins.items():
        value = what(origin)
        if value:
            found.setdefault(value, []).append(job)
    return found


def _with_jobs(found: Mapping[str, list[int]]) -> Html:
    """Return each value, with its jobs where the jobs differ."""
    if len(found) == 1:
        return element("span", *found)
    return element("ul", *(element("li", value, " (jobs ", job_links(jobs), ")") for value, jobs in found.items()))


def _sweep_line(sweep: SweepText) -> str:
    labels = ", ".join(f"{name}: {value}" for name, value in sweep.labels.items())
    return f"enqueued {moment(sweep.created_at)}" + (f"; labels {labels}" if labels else "")


def _shared(configs: Sequence[Mapping[str, Any]], varied: Collection[str]) -> Html:
    shared = {name: value for name, value in (configs[0] if configs else {}).items() if name not in varied}
    text = "\n".join(f"{name}: {_text(value)}" for name, value in shared.items() if _is_in_all(name, configs))
    return element("pre", text or "nothing", class_="columns")


def _is_in_all(name: str, configs: Sequence[Mapping[str, Any]]) -> bool:
    return all(name in config for config in configs)


def _differing(configs: Mapping[int, Mapping[str, Any]], varied: Collection[str]) -> list[Html]:
    """Return the table of what else differs between jobs than the table of jobs shows; nothing where nothing does."""
    names = dict.fromkeys(name for config in configs.values() for name in config)
    whole = list(configs.values())
    odd = [name for name in names if name in varied or not _is_in_all(name, whole)]
    odd = [name for name in odd if name not in _SHOWN_ALREADY]
    if not odd:
        return []
    heads = [Head("job"), *(Head(name, right=False) for name in odd)]
    shown = sampled(list(configs), lambda job: job)
    rows = [
        (None, [job_links([job]), *(_text(configs[job][name]) if name in configs[job] else "–" for name in odd)])
        for job in shown
    ]
    few = told(shown, configs, "jobs")
    title = f"What else differs between them{f' ({few})' if few else ''}"
    return [element("h3", title), grid(heads, rows)]


def _sweep_file(sweep: SweepText) -> Html:
    title = element("summary", f"The file of sweep {sweep.name}")
    return element("details", title, element("pre", sweep.text or "It was enqueued without a file."), open="")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def moment(seconds: float) -> str:
    """Write epoch seconds as a date and a time, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
