"""SAEs of the other programs: made, trained for some steps and saved by their own code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

K, N_LATENTS = 8, 256
_BATCH, _STEPS = 128, 12
Peer = Callable[[str], Any]


def saelens(peer: Peer, kind: str, x: Tensor, **config: Any) -> Any:
    """Return SAELens's training SAE of an architecture, after some steps."""
    sae_lens, parts = peer("sae_lens"), peer("sae_lens.saes.sae")
    classes = {
        "standard": "Standard", "topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU", "gated": "Gated",
        "matryoshka_batchtopk": "MatryoshkaBatchTopK",
    }  # fmt: skip
    name = f"{classes[kind]}TrainingSAE"
    sizes = {"d_in": x.shape[1], "d_sae": N_LATENTS, **config} | ({"k": K} if "topk" in kind else {})
    if kind == "matryoshka_batchtopk":
        sizes["matryoshka_widths"] = [64, N_LATENTS]
    torch.manual_seed(0)
    sae = getattr(sae_lens, name)(getattr(sae_lens, f"{name}Config")(**sizes))
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for step in range(_STEPS):
        given = parts.TrainStepInput(
            sae_in=x[step * _BATCH : (step + 1) * _BATCH], dead_neuron_mask=None, n_training_steps=step,
            coefficients=dict.fromkeys(sae.get_coefficients(), 0.001), is_logging_step=False,
        )  # fmt: skip
        sae.training_forward_pass(step_input=given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sae


def sparsify(peer: Peer, x: Tensor, *, transcodes: bool = False, skips: bool = False) -> Any:
    """Return sparsify's SparseCoder, after some steps."""
    module = peer("sparsify")
    torch.manual_seed(0)
    config = module.SparseCoderConfig(expansion_factor=2, k=K, transcode=transcodes, skip_connection=skips)
    sae = module.SparseCoder(x.shape[1], config)
    sae.b_dec.data = x.mean(0)
    target = x.roll(1, 1) * 0.5 if transcodes else x
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-3)
    for step in range(_STEPS):
        batch = slice(step * _BATCH, (step + 1) * _BATCH)
        if not transcodes:
            sae.set_decoder_norm_to_unit_norm()
        sae(x[batch], target[batch]).fvu.backward()
        optimizer.step()
        optimizer.zero_grad()
    return sae


def dictionary_learning(peer: Peer, name: str, x: Tensor) -> Any:
    """Return the SAE of one of dictionary_learning's trainers, after some steps."""
    modules = {
        "TopKTrainer": "top_k", "BatchTopKTrainer": "batch_top_k", "JumpReluTrainer": "jumprelu",
        "MatryoshkaBatchTopKTrainer": "matryoshka_batch_top_k", "StandardTrainer": "standard",
        "GatedSAETrainer": "gdm", "StandardTrainerAprilUpdate": "standard",
    }  # fmt: skip
    trainer_class = getattr(peer(f"dictionary_learning.trainers.{modules[name]}"), name)
    arguments: dict[str, Any] = {
        "steps": 1000, "activation_dim": x.shape[1], "dict_size": N_LATENTS, "layer": 2, "lm_name": "m",
        "device": "cpu", "seed": 0, "warmup_steps": 0, **({} if "TopK" in name else {"sparsity_warmup_steps": 0}),
    }  # fmt: skip
    if "TopK" in name:
        arguments |= {"k": K, "lr": 3e-3, "threshold_start_step": 0}
    if "Matryoshka" in name:
        arguments |= {"group_fractions": [0.25, 0.75]}
    trainer = trainer_class(**arguments)
    for step in range(_STEPS):
        trainer.update(step, x[step * _BATCH : (step + 1) * _BATCH])
    return trainer


def save_dictionary_learning(trainer: Any, folder: Path) -> None:
    """Save as its `trainSAE` does: the state, and the trainer's own config."""
    folder.mkdir()
    torch.save({name: value.cpu() for name, value in trainer.ae.state_dict().items()}, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer.config, "buffer": {"ctx_len": 128}}))


def load_dictionary(peer: Peer, folder: Path) -> Any:
    """Load as its `utils.load_dictionary` does, which wants packages of its training, too."""
    name = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    modules = {
        "AutoEncoderTopK": "trainers.top_k", "BatchTopKSAE": "trainers.batch_top_k",
        "MatryoshkaBatchTopKSAE": "trainers.matryoshka_batch_top_k",
    }  # fmt: skip
    return getattr(peer(f"dictionary_learning.{modules.get(name, 'dictionary')}"), name).from_pretrained(
        folder / "ae.pt"
    )
