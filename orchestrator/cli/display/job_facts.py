"""What a job trains or measures on, in words: the model and the place in it, the text, and what `auto` came to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.config.synthetic import is_synthetic
from orchestrator.formatting import whole

if TYPE_CHECKING:
    from orchestrator.results import AttemptRow


def place_facts(config: Mapping[str, Any], attempts: "Sequence[AttemptRow]") -> list[tuple[str, str]]:
    """Return model, place, text, what was left open and how steps are taken, each with its name; `config` is nested."""
    told = [attempt.facts for attempt in attempts if attempt.facts]
    facts: Mapping[str, Any] = told[-1] if told else {}
    subject, data = config["subject"], config["data"]
    revision = f"@{subject['revision']}" if subject["revision"] else ""
    place = [
        ("model", f"{subject['model']}{revision}"),
        ("hook point", _hook_point(subject, facts.get("subject") or {})),
    ]
    lens = (config.get("sae") or {}).get("lens") if "plan" not in config else None
    if lens:
        place.append(("lens", f"{lens[:12]}: fvu is in its space"))
    settled = [("auto came to", _auto(config, facts)), ("step", str(facts.get("step") or ""))]
    if is_synthetic(subject["model"]):
        return [place[0], *settled]
    text = " ".join(str(data[name]) for name in ("source", "name", "revision") if data[name])
    return [
        *place,
        ("text", f"{text}, contexts of {data['context_length']} tokens"),
        *settled,
    ]


def _hook_point(subject: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the layer and the site as they were asked for, and the module that is read, once an attempt has told."""
    if subject["hook"]:
        return str(subject["hook"])
    layers = subject.get("layers")
    if layers is not None:
        there = found.get("layers") or ([] if layers == "all" else layers)
        named = " ".join(["all"] * (layers == "all") + ["layers"])
        return ", ".join([f"{named} {', '.join(map(str, there))}".rstrip(), subject["site"]])
    layer = "auto" if subject["layer"] is None else subject["layer"]
    module = f" ({found['site']})" if found.get("site") else ""
    return f"layer {layer}, {subject['site']}{module}"


def _auto(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return the values that the config left open, as the newest attempt settled them."""
    if "sae" not in config or "plan" in config:  # neither an evaluation nor a lens leaves anything open
        return ""
    sae, training = config["sae"], config["training"]
    left_open = {
        "lr": config["optimizer"]["lr"] == "auto",
        "n_latents": sae["n_latents"] is None,
        "k_aux": sae["k_aux"] is None,
        "subject_dtype": config["subject"].get("dtype") == "auto",
        "dead_after_tokens": training["dead_after_tokens"] == "auto",
    }
    return ", ".join(
        f"{name} {_value(facts[name])}" for name, is_open in left_open.items() if is_open and name in facts
    )


def _value(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return whole(value) if isinstance(value, int) else f"{value:.4g}"
