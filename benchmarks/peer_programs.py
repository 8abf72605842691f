"""The training programs of other libraries, as their documentation runs them: from a model and a text to saved SAEs.

`python -m benchmarks.peer_programs NAME ORDER`: ORDER is a JSON file of `Order`. Each gets its own defaults for what
an order does not say: optimiser, learning rate, start, AuxK, warm-up (dictionary_learning's is a tenth of the run where
its own would be longer). Where a library can train several SAEs on one stream of activations (dictionary_learning) it
does; where it cannot, one after another in one process, the model and the tokens loaded once.
"""

import contextlib
import importlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

_READ_AT_ONCE = 256
"""Contexts of which the model reads, for a library that leaves that to its user."""


class Order(NamedTuple):
    """A sweep over n_latents and k on one subject and text."""

    model: str
    """Folder of a causal language model and its tokenizer."""
    text: str
    """A .jsonl file with one document a line, under `text`."""
    layer: int
    d_model: int
    sizes: list[tuple[int, int]]
    """(n_latents, k) of each SAE."""
    tokens: int
    """Training tokens of each SAE."""
    context: int
    batch_tokens: int
    threads: int
    out: str
    """Folder the SAEs are saved in."""

    @property
    def steps(self) -> int:
        """Return the optimiser steps of an SAE."""
        return self.tokens // self.batch_tokens


def main() -> None:
    """Carry out an order."""
    name, path = sys.argv[1:]
    order = Order(**json.loads(Path(path).read_text()))
    torch.set_num_threads(order.threads)
    with contextlib.redirect_stdout(sys.stderr):
        PROGRAMS[name](order)


def sparsify(order: Order) -> None:
    """Train one SAE after another with sparsify's Trainer."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    library: Any = importlib.import_module("sparsify")
    config: Any = importlib.import_module("sparsify.config")
    data: Any = importlib.import_module("sparsify.data")
    model, tokenizer = _model(order)
    packed = data.chunk_and_tokenize(_documents(order), tokenizer, max_seq_len=order.context, num_proc=1)
    packed = packed.select(range(min(len(packed), order.tokens // order.context)))
    for number, (n_latents, k) in enumerate(order.sizes):
        asked = config.TrainConfig(
            sae=config.SparseCoderConfig(num_latents=n_latents, k=k), batch_size=order.batch_tokens // order.context,
            layers=[order.layer], log_to_wandb=False, save_dir=order.out, run_name=str(number),
        )  # fmt: skip
        library.Trainer(asked, packed, model).fit()


def sae_lens(order: Order) -> None:
    """Train one SAE after another with SAELens' runner."""
    library: Any = importlib.import_module("sae_lens")
    loading: Any = importlib.import_module("sae_lens.load_model")
    hook = f"transformer.h.{order.layer}"
    subject = loading.load_model("AutoModelForCausalLM", order.model, "cpu", hook_names=[hook])
    documents = _documents(order)
    for number, (n_latents, k) in enumerate(order.sizes):
        asked = library.LanguageModelSAERunnerConfig(
            sae=library.TopKTrainingSAEConfig(d_in=order.d_model, d_sae=n_latents, k=k),
            model_name=order.model, model_class_name="AutoModelForCausalLM", hook_name=hook, dataset_path=order.text,
            is_dataset_tokenized=False, streaming=False, context_size=order.context, training_tokens=order.tokens,
            train_batch_size_tokens=order.batch_tokens, prepend_bos=False, device="cpu", verbose=False,
            logger=library.LoggingConfig(log_to_wandb=False), checkpoint_path=None,
            output_path=str(Path(order.out) / str(number)),
        )  # fmt: skip
        library.LanguageModelSAETrainingRunner(asked, override_dataset=documents, override_model=subject).run()


def dictionary_learning(order: Order) -> None:
    """Train all SAEs on one stream of activations with dictionary_learning's trainSAE.

    Its own buffer does not run with the nnsight that is there (0.8): trainSAE gets batches of a plain one of ours.
    """
    training: Any = importlib.import_module("dictionary_learning.training")
    top_k: Any = importlib.import_module("dictionary_learning.trainers.top_k")
    of_all = {
        "trainer": top_k.TopKTrainer, "steps": order.steps, "activation_dim": order.d_model, "layer": order.layer,
        "lm_name": order.model, "device": "cpu", "seed": 0, "warmup_steps": min(1000, order.steps // 10),
    }  # fmt: skip
    trainers = [of_all | {"dict_size": n_latents, "k": k} for n_latents, k in order.sizes]
    training.trainSAE(_batches(order), trainers, steps=order.steps, save_dir=order.out, device="cpu")


def _model(order: Order) -> tuple[Any, Any]:
    transformers: Any = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(order.model)
    return model, transformers.AutoTokenizer.from_pretrained(order.model)


def _documents(order: Order) -> Any:
    datasets: Any = importlib.import_module("datasets")
    return datasets.load_dataset("json", data_files=order.text, split="train")


def _batches(order: Order) -> Iterator[Tensor]:
    """Yield batches of activations, (batch_tokens, d_model), shuffled among the contexts that are read at once."""
    model, tokenizer = _model(order)
    found: list[Tensor] = []
    model.transformer.h[order.layer].register_forward_hook(lambda _module, _args, out: found.append(_hidden(out)))
    ids: list[int] = []
    for text in itertools.cycle(json.loads(line)["text"] for line in Path(order.text).read_text().splitlines()):
        ids += tokenizer(text)["input_ids"]
        while len(ids) >= _READ_AT_ONCE * order.context:
            now, ids = ids[: _READ_AT_ONCE * order.context], ids[_READ_AT_ONCE * order.context :]
            with torch.no_grad():
                model.base_model(torch.tensor(now).view(-1, order.context))
            vectors = found.pop().flatten(0, 1)
            yield from torch.split(vectors[torch.randperm(len(vectors))], order.batch_tokens)


def _hidden(out: Any) -> Tensor:
    hidden: Tensor = out[0] if isinstance(out, tuple) else out
    return hidden.detach()


PROGRAMS: dict[str, Callable[[Order], None]] = {
    "sparsify": sparsify, "dictionary_learning": dictionary_learning, "SAELens": sae_lens,
}  # fmt: skip
"""By the library's name."""

if __name__ == "__main__":
    main()
