"""Does a config fit its model and text? Asked of files when a sweep is enqueued, and of what is loaded by a trainer."""

from typing import NamedTuple

from orchestrator.config.job import DataConfig, JobConfig, SubjectConfig
from orchestrator.errors import ConfigError


class ModelSizes(NamedTuple):
    """What is known of a model without its weights; None: not known."""

    n_blocks: int | None = None
    vocabulary: int | None = None
    """Token ids that it knows."""


def check_layer(subject: SubjectConfig, n_blocks: int, *, asked: str = "") -> None:
    """Refuse layers that a model of so many blocks does not have, and all layers where there is one.

    `asked`: the key that named them, where that was none of the subject's.

    Raises:
        ConfigError: says which layers there are.
    """
    there = f"{subject.model} has {n_blocks} block{'s' if n_blocks != 1 else ''}, counted from 0"
    if subject.layers == "all" and n_blocks < 2:
        raise ConfigError(f"subject.layers = all, and {there}: that is one layer", hint="Set subject.layer: 0 instead.")
    key = "layer" if subject.layers is None else "layers"
    named = [place.layer for place in subject.places(n_blocks) if place.layer is not None]
    if named and max(named) >= n_blocks:
        hint = "Give a layer" if key == "layer" else "Give layers"
        raise ConfigError(
            f"{asked or f'subject.{key}'} = {subject.layer if key == 'layer' else list(named)}, and {there}",
            hint=f"{hint} from 0 to {n_blocks - 1}.",
        )


def check_context(data: DataConfig, most: int | None) -> None:
    """Refuse contexts longer than the model reads, or too short for a token of text; `most` None: the model says not.

    Raises:
        ConfigError: says what is possible.
    """
    if most is not None and data.context_length > most:
        raise ConfigError(
            f"data.context_length = {data.context_length}: the model reads {most} at most",
            hint=f"Set data.context_length to {most} or less.",
        )
    if data.context_length <= data.prepend_bos:
        raise ConfigError("data.context_length: 1 leaves no room for text after the BOS token", hint="Raise it.")


def check_bos(data: DataConfig, *, has_bos: bool) -> None:
    """Refuse a BOS token that the tokenizer does not have.

    Raises:
        ConfigError: there is none to prepend.
    """
    if data.prepend_bos and not has_bos:
        raise ConfigError("data.prepend_bos: this tokenizer has no BOS token", hint="Set data.prepend_bos: false.")


def check_text_limit(config: JobConfig) -> None:
    """Refuse a limit of the text that leaves less to train on than one batch, whatever the text.

    Raises:
        ConfigError: says how much is left at most.
    """
    data, training = config.data, config.training
    if data.max_tokens is None:
        return
    stride = max(1, data.context_length - data.prepend_bos)
    contexts = data.max_tokens // stride - -(-training.heldout_tokens // stride)
    left = max(0, contexts) * data.context_length
    if left < training.batch_tokens:
        raise ConfigError(
            f"data.max_tokens = {data.max_tokens} leaves {left} tokens to train on at most, of contexts of "
            f"{data.context_length}, beside training.heldout_tokens = {training.heldout_tokens}: less than a batch of "
            f"{training.batch_tokens}",
            hint="Raise data.max_tokens, or lower training.heldout_tokens or training.batch_tokens.",
        )
