"""An SAE's files on this machine: a path as it is, or what a hub id names, cached or downloaded."""

from pathlib import Path

from orchestrator.errors import ConfigError
from worker.subject import hub

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")
_SHOWN = 8
_HINT = "Give a folder or file, or a hub id: ORG/NAME, or ORG/NAME/FOLDER of one SAE of several."


def local_files(source: str) -> Path:
    """Return the file or folder that a person means.

    Raises:
        ConfigError: there is none, or the repository holds several SAEs.
        SubjectError, MachineError: the hub refuses, or is out of reach.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    parts = source.strip("/").split("/")
    if source.startswith((".", "/", "~")) or len(parts) < 2:
        raise ConfigError(f"there is no file or folder {source!r}", hint=_HINT)
    return _downloaded("/".join(parts[:2]), "/".join(parts[2:]))


def _downloaded(repository: str, inside: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    wanted = [inside, f"{inside}/*"] if inside else None
    try:
        folder = Path(snapshot_download(repository, allow_patterns=wanted, local_files_only=True))
        if any(one.suffix in WEIGHTS for one in (folder / inside).rglob("*")) or (folder / inside).is_file():
            return folder / inside
    except HFValidationError as error:
        raise ConfigError(f"{repository!r}: {hub.first_line(error)}", hint=_HINT) from None
    except (OSError, ValueError):
        pass  # nothing of it is cached
    if not hub.is_reachable():
        away = f"{repository!r} is neither a folder nor cached here, and the hub cannot be reached"
        raise hub.out_of_reach(away, _HINT)
    try:
        _refuse_several(repository, inside)
        return Path(snapshot_download(repository, allow_patterns=wanted)) / inside
    except RepositoryNotFoundError:
        raise ConfigError(
            f"the hub has no repository {repository!r} that you may read", hint=f"{_HINT} Is it private? hf auth login"
        ) from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise hub.refused(f"SAE {repository!r}", error, _HINT) from None


def _refuse_several(repository: str, inside: str) -> None:
    """Refuse to download hundreds of SAEs for one."""
    from huggingface_hub import HfApi

    names = [name for name in HfApi().list_repo_files(repository) if name.startswith(inside)]
    if inside in names:
        return
    folders = sorted({name.rpartition("/")[0] for name in names if name.endswith(WEIGHTS)})
    if not folders:
        raise ConfigError(f"{repository}/{inside} holds no weights of an SAE".replace("/ ", " "), hint=_HINT)
    if len(folders) > 1:
        shown = ", ".join(folders[:_SHOWN]) + (", …" if len(folders) > _SHOWN else "")
        raise ConfigError(
            f"{repository} holds {len(folders)} SAEs: {shown}", hint=f"Name one of them: {repository}/{folders[0]}"
        )
