"""What an SAE is measured on: the config that reads its subject, at its place, over a text."""

from collections.abc import Mapping
from typing import Any

from orchestrator.config.job import JobConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.validation import parse
from orchestrator.errors import SubjectError

TOKENS = 16_384
"""An imported SAE is measured on so many, where nothing else is asked."""
_OF_CONTEXTS = ("context_length", "prepend_bos", "special_tokens")
"""Keys of a config's data that do not say which text is read."""
_PACKED = 8
"""Of an imported SAE's text so many times the tokens it is measured on are packed, and the last of them are read."""


def config_of(
    facts: SaeFacts, asked: Mapping[str, Any], trained: JobConfig | None = None, *, of_several_layers: bool = False
) -> JobConfig:
    """Return the config that reads what an SAE is measured on.

    What is asked for comes first, then what a job was trained on, then what an imported SAE's files state.
    `of_several_layers`: whether it may be read at all the layers it is of, instead of one.

    Raises:
        ConfigError: what is asked for does not fit together.
        SubjectError: nothing names its subject, or its place.
    """
    if trained is not None:
        subject, data = trained.subject.model_dump(), trained.data.model_dump()
    else:
        stated = {"model": facts.subject, "revision": facts.revision, **_place(facts)}
        subject = {name: value for name, value in stated.items() if value is not None}
        data = {"context_length": facts.context_length, "prepend_bos": facts.prepend_bos}
        data = {name: value for name, value in data.items() if value is not None}
    if asked.get("data") is not None:  # of the text it was trained on nothing is left but how contexts are made
        data = {name: value for name, value in data.items() if name in _OF_CONTEXTS}
    subject |= _asked_place(asked)
    if subject.get("layers") is not None and not (of_several_layers and len(subject["layers"]) > 1):
        if len(subject["layers"]) > 1:  # "all" is longer, too
            raise SubjectError("it is of several layers, and is read at one of them here", hint="--layer names it.")
        subject |= {"layer": subject["layers"][0], "layers": None}
    subject |= _given(asked, model="subject", revision="revision")
    data |= _given(asked, source="data", context_length="context")
    if trained is None and not (subject.get("model") and _names_place(subject)):
        raise SubjectError("its files do not say of which model and place", hint="--subject, --layer and --site do.")
    own = trained.training.heldout_tokens if trained is not None else TOKENS
    tokens = asked.get("tokens") or own
    if trained is None or asked.get("data") is not None:
        data["max_tokens"] = _PACKED * tokens
    # Nothing is trained: what is left of the text need not fill a batch.
    training = {"heldout_tokens": tokens, "batch_tokens": 1}
    sae = {"normalize": "none", "k": 1, "lens": facts.lens}
    return parse({"subject": subject, "data": data, "sae": sae, "training": training})


def stated_place(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts that the options of a command say of an SAE that cannot be measured here."""
    facts = _given(
        asked, subject="subject", revision="revision", site="site", hook_point="hook", context_length="context"
    )
    return facts | ({"layers": (asked["layer"],)} if asked.get("layer") is not None else {})


def _place(facts: SaeFacts) -> dict[str, Any]:
    if facts.site is not None and facts.layers:
        if len(facts.layers) > 1:
            return {"site": facts.site, "layers": facts.layers}
        return {"site": facts.site, "layer": facts.layers[0]}
    return {"hook": facts.hook_point}


def _names_place(subject: Mapping[str, Any]) -> bool:
    """Say whether a block or a module is named: without, a config means the block at three quarters of the depth."""
    return any(subject.get(name) is not None for name in ("layer", "layers", "hook"))


def _asked_place(asked: Mapping[str, Any]) -> dict[str, Any]:
    place = _given(asked, hook="hook", layer="layer", site="site")
    if "hook" in place:
        return place | {"layer": place.get("layer"), "layers": None}
    if "layer" in place:
        return place | {"hook": None, "layers": None}
    return place | {"hook": None} if place else {}


def _given(asked: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return what is asked for, by the names it has in a config."""
    return {name: asked[flag] for name, flag in names.items() if asked.get(flag) is not None}
