"""Every format of an SAE: which one a folder or a file is in, reading it, and writing it whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError, OrchError, StorageError
from worker import checked_folder
from worker.formats import portable
from worker.formats.foreign import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    mlsae,
    openai,
    qwen_scope,
    saelens,
    sparsify,
    transcoders,
)
from worker.sae.inference import InferenceSae


class SaeFormat(NamedTuple):
    """One format."""

    title: str
    files: tuple[str, ...]
    """Patterns of the files that are needed of a folder on a hub."""
    reasons: Callable[[Path], list[str]]
    read: Callable[[Path, str], InferenceSae]
    fill: Callable[[InferenceSae], Callable[[Path], None]] | None = None
    """None: it is read alone."""


class Detection(NamedTuple):
    """The format of a folder or file, and what speaks for it."""

    name: str
    reasons: list[str]


class ReadSae(NamedTuple):
    """An SAE and what its files state of it."""

    sae: InferenceSae
    facts: SaeFacts


FORMATS: dict[str, SaeFormat] = {
    "orch": SaeFormat(
        "orch", ("sae.safetensors", "cfg.json", "config.json", "manifest.json"),
        portable.reasons, portable.read, portable.fill,
    ),
    "saelens": SaeFormat(
        "SAELens", ("cfg.json", "sae_weights.safetensors", "activation_scaler.json"),
        saelens.reasons, saelens.read, saelens.fill,
    ),
    "sparsify": SaeFormat(
        "sparsify", ("cfg.json", "sae.safetensors", "config.json"), sparsify.reasons, sparsify.read, sparsify.fill
    ),
    "dictionary_learning": SaeFormat(
        "dictionary_learning", ("ae.pt", "config.json"),
        dictionary_learning.reasons, dictionary_learning.read, dictionary_learning.fill,
    ),
    "openai": SaeFormat("OpenAI's format", ("*.pt",), openai.reasons, openai.read, openai.fill),
    "mlsae": SaeFormat("mlsae", ("config.json", "model.safetensors"), mlsae.reasons, mlsae.read, mlsae.fill),
    "gemma_scope": SaeFormat(
        "Gemma Scope", ("params.npz", "params.safetensors", "config.json"), gemma_scope.reasons, gemma_scope.read
    ),
    "llama_scope": SaeFormat(
        "Llama Scope",
        ("hyperparams.json", "checkpoints/final.safetensors", "config.json", "sae_weights.safetensors"),
        llama_scope.reasons, llama_scope.read,
    ),
    "qwen_scope": SaeFormat("Qwen Scope", ("layer*.sae.pt",), qwen_scope.reasons, qwen_scope.read),
    "transcoder": SaeFormat(
        "a transcoder's layer file", ("layer_*.safetensors", "config.yaml"), transcoders.reasons, transcoders.read
    ),
}  # fmt: skip
"""By the name that the command line gives it."""
_NOT_AS_WRITTEN = (AttributeError, TypeError, ValueError, KeyError, IndexError, OverflowError, RuntimeError)
"""What a config with a list in the place of a number, say, comes to."""
_STATED: dict[str, tuple[type, ...]] = {
    "subject": (str,), "revision": (str,), "hook_point": (str,), "target_hook_point": (str,),
    "context_length": (int,), "prepend_bos": (bool,), "stated_l0": (float, int), "stated_fvu": (float, int),
}  # fmt: skip
"""Facts that are taken from files as they stand there."""
WRITTEN = tuple(name for name, form in FORMATS.items() if form.fill is not None)
_OF_SEVERAL_LAYERS = ("orch", "mlsae")


def detect(path: Path) -> Detection:
    """Return the format of a folder or file, and why.

    Raises:
        ConfigError: it is in none that is known, or as much speaks for two.
    """
    if not path.exists():
        raise ConfigError(f"there is no folder or file {path}")
    found = sorted(
        (Detection(name, reasons) for name, form in FORMATS.items() if (reasons := form.reasons(path))),
        key=lambda detection: -len(detection.reasons),
    )
    if not found:
        there = ", ".join(sorted(file.name for file in path.iterdir())[:12]) if path.is_dir() else path.name
        raise ConfigError(
            f"{path} is in no format of an SAE that is known (there is: {there or 'nothing'})",
            hint=f"Known: {', '.join(FORMATS)}. Name the folder or file of ONE SAE.",
        )
    if len(found) > 1 and len(found[0].reasons) == len(found[1].reasons):
        raise ConfigError(
            f"{path} may be in the format {found[0].name} ({'; '.join(found[0].reasons)}) or {found[1].name} "
            f"({'; '.join(found[1].reasons)})",
            hint="Say which.",
        )
    return found[0]


def read(path: Path, *, format: str | None = None, named: str = "") -> ReadSae:
    """Return the SAE of a folder or file; `format` where it is known, `named` where it came from (a hub id).

    What a format leaves to the names of folders is taken from `named` and from the path. No code that may be in the
    files is run. The tensors are those of the file, in its precision, without a copy where it does without.

    Raises:
        ConfigError: the format is not known, or the files are not as it says; the message names file and tensor.
    """
    name = format or detect(path).name
    form = _known(name)
    try:
        sae = form.read(path, named)
    except OrchError:
        raise
    except _NOT_AS_WRITTEN as error:
        raise ConfigError(f"{path} is not as {form.title} writes it ({type(error).__name__}: {error})") from error
    _check_types(sae.facts, path)
    return ReadSae(sae, sae.facts)


def write(sae: InferenceSae, folder: Path, *, format: str, facts: SaeFacts | None = None) -> str:
    """Write an SAE to a new folder, whole or not at all; return the sha256 of its manifest, which holds all others.

    Raises:
        ConfigError: the format has no place for what this SAE does, or the folder is there already.
        StorageError: the disk is full or refuses.
    """
    form = _known(format)
    if form.fill is None:
        raise ConfigError(f"{form.title} is read alone", hint=f"Written are: {', '.join(WRITTEN)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already", hint="Name a new folder.")
    sae = sae if facts is None else sae.changed({}, facts=facts)
    if len(sae.facts.layers) > 1 and format not in _OF_SEVERAL_LAYERS:
        layers = ", ".join(map(str, sae.facts.layers))
        raise ConfigError(
            f"{form.title} holds an SAE of one layer, and this one reads layers {layers}",
            hint=f"Of several layers are written: {', '.join(_OF_SEVERAL_LAYERS)}. Of one of them: --layer N",
        )
    if sae.facts.lens is not None and format != "orch":
        raise ConfigError(
            f"{form.title} has no word for the space of a tuned lens, which this SAE reads (lens "
            f"{sae.facts.lens[:12]}): it would be taken for one of raw activations",
            hint="Only our own format says so: --format orch",
        )
    fill = form.fill(sae)
    try:
        return checked_folder.write_folder(folder, fill)
    except StorageError as error:
        raise StorageError(error.message, hint="Nothing of it was kept.") from error


def files_needed(format: str) -> list[str]:
    """Return patterns of the files that an import needs of a folder.

    Raises:
        ConfigError: there is no such format.
    """
    return list(_known(format).files)


def _check_types(facts: SaeFacts, path: Path) -> None:
    for name, kinds in _STATED.items():
        found = getattr(facts, name)
        if found is not None and not isinstance(found, kinds):
            raise ConfigError(f"{path} says {name} = {found!r}, which is no {kinds[0].__name__}")


def _known(name: str) -> SaeFormat:
    if name not in FORMATS:
        raise ConfigError(f"there is no format {name!r} (known: {', '.join(FORMATS)})")
    return FORMATS[name]
