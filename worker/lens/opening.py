"""Open a lens among the artifacts for a loaded model, or say why it cannot be."""

from pathlib import Path

from orchestrator.config.lens.facts import is_content_id
from orchestrator.errors import CheckpointError, CheckpointsElsewhere, ConfigError
from worker.lens.tuned_lens import TunedLens
from worker.subject.model import Subject


def open_lens(lenses: Path, sha256: str, subject: Subject) -> TunedLens:
    """Return a lens of the folder of lenses, on the model's device.

    Raises:
        ConfigError: it is not there, was changed, or is of another model.
        CheckpointsElsewhere: there is no such folder: this machine does not see the artifacts.
    """
    lens = read_lens(lenses, sha256)
    check_model(lens, subject)
    return lens.to(subject.device)


def read_lens(lenses: Path, sha256: str) -> TunedLens:
    """Return a lens of the folder of lenses, of whatever model.

    Raises:
        ConfigError: it is not there, or was changed.
        CheckpointsElsewhere: there is no such folder: this machine does not see the artifacts.
    """
    folder = lenses / sha256
    if not is_content_id(sha256):
        raise ConfigError(
            f"sae.lens = {sha256!r} is no content id of a lens", hint="orch enqueue finds it by its name."
        )
    if not lenses.is_dir():
        raise CheckpointsElsewhere(
            f"the lens {sha256[:12]} is not there, nor the folder of lenses, {lenses}",
            hint="Is the folder of artifacts (ORCH_ARTIFACTS, else ORCH_HOME) mounted, and shared by every worker?",
        )
    if not folder.is_dir():
        raise ConfigError(
            f"the lens {sha256[:12]} is gone: there is no folder {folder}",
            hint="Import the same files, or train it anew: of the same content it has the same name.",
        )
    try:
        return TunedLens.read(folder, sha256=sha256)
    except CheckpointError as error:
        raise ConfigError(f"the lens {sha256[:12]}: {error.message}", hint="Import it again.") from error


def check_model(lens: TunedLens, subject: Subject) -> None:
    """Refuse a lens of another model than the one that is loaded.

    Raises:
        ConfigError: says which models these are.
    """
    if lens.facts.fingerprint != subject.fingerprint:
        raise ConfigError(
            f"the lens is of {lens.facts.model} with the weights {lens.facts.fingerprint[:12]}, and the model read "
            f"here, {subject.config.model}, has the weights {subject.fingerprint[:12]}",
            hint="Train or import a lens of this model, or read the model the lens is of.",
        )
