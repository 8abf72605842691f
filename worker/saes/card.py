"""The card of an exported SAE: what it is, how it was measured, how it was trained, how each library loads it."""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.formatting import count
from orchestrator.saes import SaeEntry
from orchestrator.versions import versions
from worker.saes.loading import Chosen

_LIBRARIES = {"saelens": "saelens", "sparsify": "sparsify", "dictionary_learning": "dictionary_learning"}
LOADING: Mapping[str, str] = {
    "orch": 'import orch\n\nsae = orch.load("{folder}")\nx_hat = sae(x)  # raw activations (n_tokens, d_model)',
    "saelens": (
        'from sae_lens import SAE\n\nsae = SAE.load_from_disk("{folder}")\n'
        "x_hat = sae.decode(sae.encode(x))  # raw activations (n_tokens, d_model)"
    ),
    "sparsify": (
        'from sparsify import SparseCoder\n\nsae = SparseCoder.load_from_disk("{folder}")\nx_hat = sae(x).sae_out'
    ),
    "dictionary_learning": (
        "from dictionary_learning.utils import load_dictionary\n\n"
        'sae, config = load_dictionary("{folder}", device="cpu")\nx_hat = sae(x)'
    ),
    "openai": (
        "import torch\nfrom sparse_autoencoder import Autoencoder\n\n"
        'sae = Autoencoder.from_state_dict(torch.load("{folder}/autoencoder.pt", weights_only=True))\n'
        "latents, info = sae.encode(x)\nx_hat = sae.decode(latents, info)"
    ),
    "mlsae": 'from mlsae.model import MLSAE\n\nsae = MLSAE.from_pretrained("{folder}")',
}
"""How the library of each format loads a folder."""


def card(chosen: Chosen, format_: str, *, config: Mapping[str, Any] | None, results: Mapping[str, Any]) -> str:
    """Return the README.md of an exported SAE; `config` and `results` are those of the job that trained it."""
    facts = chosen.sae.facts
    parts = [
        _front_matter(facts, format_),
        f"# {_title(facts)}",
        _what_it_is(chosen, facts),
        "## Measured\n" + _measured(chosen.entry, facts, results),
        f"## Loading it\n```python\n{LOADING[format_].format(folder='.')}\n```",
    ]
    if config is not None:
        text = json.dumps(config, indent=2)
        parts += ["## Training\n![The held-out loss against training tokens](curve.png)", f"```json\n{text}\n```"]
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n\n".join([*parts, f"Written by orch ({made})."]) + "\n"


def _front_matter(facts: SaeFacts, format_: str) -> str:
    lines = ["tags:", "- sparse-autoencoder", "- mechanistic-interpretability"]
    if format_ in _LIBRARIES:
        lines = [f"library_name: {_LIBRARIES[format_]}", *lines]
    is_hub_id = facts.subject is not None and facts.subject.count("/") == 1 and not facts.subject.startswith((".", "/"))
    if is_hub_id:
        lines.append(f"base_model: {facts.subject}")
    return "\n".join(["---", *lines, "---"])


def _title(facts: SaeFacts) -> str:
    return f"A sparse autoencoder of {facts.subject or 'a language model'}, {facts.n_latents:,} latents"


def _what_it_is(chosen: Chosen, facts: SaeFacts) -> str:
    place = f"{facts.site} of block {', '.join(map(str, facts.layers))}" if facts.site else facts.hook_point
    rows = {
        "Subject": (facts.subject or "not known") + (f", revision {facts.revision}" if facts.revision else ""),
        "Reads": (place or "not known") + (f" ({facts.hook_point})" if facts.hook_point and facts.site else ""),
        "In the space of the tuned lens": facts.lens,
        "Predicts": facts.target_hook_point,
        "Latents": f"{facts.n_latents:,} of {facts.d_model:,} dimensions",
        "Selection": facts.selection + (f", k = {facts.k}" if facts.k else ""),
        "Each vector is normalised": facts.normalize,
        "Decoder bias is subtracted from the input": "yes" if facts.subtracts_bias else "no",
        "Context": f"{facts.context_length} tokens" if facts.context_length else None,
        "Begins with BOS": {True: "yes", False: "no", None: None}[facts.prepend_bos],
        "Came from": _origin(chosen),
    }
    return _table({name: value for name, value in rows.items() if value})


def _origin(chosen: Chosen) -> str:
    entry = chosen.entry
    if entry is None:
        return chosen.label
    return f"job {entry.job_id}" if entry.job_id is not None else f"{entry.format}: {entry.source}"


def _measured(entry: SaeEntry | None, facts: SaeFacts, results: Mapping[str, Any]) -> str:
    if entry is None or (entry.fvu is None and entry.fvu_raw is None):
        stated = {"fvu, as its files stated": facts.stated_fvu, "L0, as its files stated": facts.stated_l0}
        told = {name: f"{value:.4g}" for name, value in stated.items() if value is not None}
        why = f": {entry.note}" if entry is not None and entry.note else ""
        return f"Not measured{why}.\n" + (_table(told) if told else "")
    rows = {
        "fvu (share of variance unexplained), of the vectors as the SAE normalises them": entry.fvu,
        "fvu of the raw activations": entry.fvu_raw,
        "L0 (active latents per token)": entry.l0,
        "Share of dead latents": results.get("dead_share"),
    }
    shown = {name: f"{value:.4g}" for name, value in rows.items() if value is not None}
    on = f"On {count(entry.measured_tokens)} held-out tokens of `{entry.measured_on}`; state: {entry.state}."
    trained = f" Trained on {count(results['tokens_seen'])} tokens; outcome: {results['outcome']}." if results else ""
    return f"{on}{trained}\n\n{_table(shown)}"


def _table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
