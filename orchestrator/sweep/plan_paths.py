"""The paths that an evaluation plan names: absolute, as workers in other folders need them, and looked into."""

from pathlib import Path

from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.probe_files import with_checked_tasks
from orchestrator.config.text_files import is_local, listed
from orchestrator.errors import ConfigError
from orchestrator.sweep.assignments import read_value


def with_checked_paths(
    plan: EvaluationPlan, folder: Path | None = None, *, takes_selectors: bool = False
) -> EvaluationPlan:
    """Return a plan with the paths of its text, of other SAEs and of its probes' tasks absolute.

    Of `folder`: what lies in the file's folder that the plan was read from; a command line has none. Paths are read
    from there, else from the folder one is in. Ids of data sets stay as they are, and with `takes_selectors` what may
    mean an SAE of the table.

    Raises:
        ConfigError: a file or folder is not there, or has no texts and labels; says which.
    """
    folders = (folder, Path.cwd()) if folder is not None else (Path.cwd(),)
    source = read_value("data.source", plan.source, folders)
    if source is not None and is_local(source) and not any(True for _ in listed(source)):
        raise ConfigError(
            f"source: there is no text {plan.source}",
            hint=f"A relative path is read from {' and '.join(map(str, folders))}; check it.",
        )
    against = tuple(_place(path, folders, takes_selectors=takes_selectors) for path in plan.structure.against)
    structure = plan.structure.model_copy(update={"against": against})
    return with_checked_tasks(plan.model_copy(update={"source": source, "structure": structure}), folder)


def _place(path: str, folders: tuple[Path, ...], *, takes_selectors: bool) -> str:
    places = [folder / Path(path).expanduser() for folder in folders]
    there = next((place for place in places if place.exists()), None)
    if there is None and takes_selectors:
        return path
    if there is None:
        raise ConfigError(
            f"structure.against: there is no {path}", hint="It takes folders or files of SAEs; check the path."
        )
    return str(there.absolute())
