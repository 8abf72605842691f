"""Our own format of any SAE: a checked folder that needs no job and no config. And a finished SAE of a job, as one."""

import json
from collections.abc import Callable
from pathlib import Path

from orchestrator.config.job_sae_facts import job_sae_facts
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import CheckpointError, ConfigError
from worker import checked_folder
from worker.formats import stored_tensors
from worker.formats.native import load_final
from worker.formats.tensor_file import write_tensors
from worker.sae.inference import InferenceSae, Scales

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_FORMAT = "orch.sae"
_VERSION, _VERSION_WITH_LENS = 1, 2
"""Of an SAE in the space of a lens, which programs of before would take for one of raw activations."""
_OF_A_JOB = "config.json"


def reasons(path: Path) -> list[str]:
    """Return what speaks for our own formats."""
    if stored_tensors.json_or_nothing(stored_tensors.beside(path, CONFIG)).get("format") == _FORMAT:
        return [f"{CONFIG} says format {_FORMAT}"]
    is_final = stored_tensors.beside(path, WEIGHTS) and stored_tensors.beside(path, checked_folder.MANIFEST)
    of_a_job = stored_tensors.json_or_nothing(stored_tensors.beside(path, _OF_A_JOB))
    return ["it is the finished SAE of a job"] if is_final and "tokens_seen" in of_a_job else []


def read(path: Path, named: str = "") -> InferenceSae:
    """Return an SAE in our own format: of `orch sae export`, or the finished SAE of a job.

    Raises:
        ConfigError: a file or a key is missing, or was changed since it was written.
    """
    folder = path if path.is_dir() else path.parent
    try:
        checked_folder.verify(folder)
        if not (folder / CONFIG).is_file():
            model, about = load_final(str(folder))
            return InferenceSae.from_trained(
                model, job_sae_facts(about["config"], about["facts"], d_model=model.d_model)
            )
    except CheckpointError as error:
        raise ConfigError(error.message, hint="Copy or export it again.") from error
    config = stored_tensors.read_json(folder / CONFIG)
    if config.get("version") not in (_VERSION, _VERSION_WITH_LENS):
        raise ConfigError(
            f"{folder} has version {config.get('version')} of our format; {_VERSION} and {_VERSION_WITH_LENS} are known"
        )
    tensors = stored_tensors.load(folder / WEIGHTS)
    stored_tensors.need(tensors, ["W_enc"], folder / WEIGHTS)
    facts = SaeFacts.from_json(stored_tensors.value(config, "facts", folder / CONFIG))
    scales = Scales(**stored_tensors.value(config, "scales", folder / CONFIG))
    return InferenceSae(facts, tensors | {"W_enc": tensors["W_enc"].T}, scales=scales)


def fill(sae: InferenceSae) -> Callable[[Path], None]:
    """Return what writes any SAE, as it is: W_enc as (n_latents, d_model), all else as `InferenceSae` has it."""
    tensors = sae.tensors()
    about = {
        "format": _FORMAT,
        "version": _VERSION_WITH_LENS if sae.facts.lens else _VERSION,
        "facts": sae.facts.as_json(),
        "scales": sae.scales._asdict(),
    }

    def write(folder: Path) -> None:
        write_tensors(folder / WEIGHTS, tensors | {"W_enc": sae.W_enc.T})
        checked_folder.write_text(folder / CONFIG, json.dumps(about, indent=2, sort_keys=True))

    return write
