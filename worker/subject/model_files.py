"""A subject's files: the folder they are in, the weights (safetensors alone) and their fingerprint."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.job import SHIPPED_SUBJECT, SubjectConfig
from orchestrator.errors import SubjectError
from orchestrator.estimates.subject_files import SHIPPED_FOLDER
from worker.checked_folder import sha256_of_file
from worker.subject import hub


def locate(config: SubjectConfig, *, weights: bool = True) -> Path:
    """Return the folder a model is in: the shipped one, a local one, or the hub's cache.

    Raises:
        SubjectError: there is none, or its weights are pickles.
    """
    if config.model == SHIPPED_SUBJECT:
        folder = SHIPPED_FOLDER
        if not (folder / "config.json").is_file():
            raise SubjectError(
                f"the model that ships here is not at {folder}", hint="Run from a checkout of the project."
            )
    elif Path(config.model).expanduser().is_dir():
        folder = Path(config.model).expanduser().resolve()
    elif config.model.startswith((".", "/", "~")) or config.model.count("/") > 1:
        raise SubjectError(
            f"there is no model folder {config.model}", hint="Give a folder with config.json, or a model id."
        )
    else:
        folder = hub.snapshot(config.model, config.revision, weights=weights)
    if not (folder / "config.json").is_file():
        raise SubjectError(f"{folder} holds no config.json", hint="Give a folder written by save_pretrained.")
    if weights and not any(folder.glob("*.safetensors")):
        pickles = sorted(p.name for p in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        contents = f"only {', '.join(pickles[:3])}, and reading pickles can run code" if pickles else "no weights"
        raise SubjectError(
            f"{config.model} holds {contents}",
            hint="Give a model with .safetensors weights: model.save_pretrained writes them.",
        )
    return folder


def load_model(folder: Path, config: SubjectConfig) -> Any:
    """Load the weights of a folder, in evaluation mode and without gradients.

    Raises:
        SubjectError: they cannot be read, or do not fill the model.
    """
    quiet()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        model, report = loader.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        needs_its_code = "trust_remote_code" in str(error)
        raise SubjectError(
            f"model {config.model} cannot be loaded: {hub.first_line(error)}",
            hint="Set subject.trust_remote_code if you trust the code that comes with it."
            if needs_its_code
            else "Check the folder: is it a whole causal language model?",
        ) from error
    lacking = sorted(str(key) for part in ("missing_keys", "mismatched_keys") for key in report.get(part, ()))
    if lacking:
        raise SubjectError(
            f"the weights of {config.model} lack {len(lacking)} tensors, {lacking[0]} first",
            hint="Check the folder: config.json and the weights are of two different models.",
        )
    return with_fused_gelu(model.eval().requires_grad_(False))


def with_fused_gelu(model: Any) -> Any:
    """Give a model torch's own tanh approximation of GELU wherever it has one made of several operations; return it.

    The function is the same but for rounding. In a block of GPT-2 small's size the operations of `gelu_new` take longer
    on a CPU than either product of its MLP, and four times as long as the fused one.
    """
    from transformers import activations

    of_operations = activations.NewGELUActivation, activations.FastGELUActivation, activations.AccurateGELUActivation
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, of_operations):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))
    return model


def describe(folder: Path, config: SubjectConfig) -> Any:
    """Load the model config of a folder.

    Raises:
        SubjectError: it cannot be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise SubjectError(f"config of {config.model}: {hub.first_line(error)}") from error


def fingerprint(folder: Path) -> str:
    """Return the sha256 over config.json and the weight files."""
    files = {p.name: _sha256(p) for p in sorted((folder / "config.json", *folder.glob("*.safetensors")))}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    # The hub's cache links to blobs that are named by the sha256 of their content.
    blob_name = path.resolve().name
    return blob_name if path.is_symlink() and len(blob_name) == 64 else sha256_of_file(path)


def quiet() -> None:
    """Silence advice meant for people who write training scripts, and bars for loads of a tenth of a second."""
    from transformers.utils import logging

    transformers_logging: Any = logging
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
