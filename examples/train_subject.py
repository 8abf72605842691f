"""Train the small subject that ships: a GPT-2 of 1.7 million parameters on the standard library."""

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from worker.data.standard_library import is_held_out, standard_library_files

VOCABULARY = 4096
CONTEXT = 128
END = "<|endoftext|>"
PROMPTS = ("def", "class", "import os\nimport", '    """Return')
WARM_UP, ANNEALED_TO = 0.02, 0.02  # of the run, of the peak rate


@dataclass(frozen=True)
class Plan:
    """How to train: everything that decides the weights, save the machine's rounding."""

    tokens: int
    """Training tokens, repeats counted."""
    max_minutes: float
    """Wall time by which the schedule is brought to its end, however few tokens that allows."""
    batch: int
    """Windows of 128 tokens a step."""
    learning_rate: float
    """Peak, reached after a fiftieth of the run."""
    bfloat16: bool
    """Multiply matrices in bfloat16; weights and optimizer stay float32."""
    seed: int
    """Of the weights, the order of the windows, and the samples."""
    device: torch.device
    """Where the model is."""
    compiled: bool
    """Fuse the step with torch.compile (needs a C++ compiler; half as fast again on a CPU)."""


class Corpus(NamedTuple):
    """The token ids of both parts, each document followed by the end token."""

    training: Tensor
    held_out: Tensor
    held_out_documents: int


class Losses(NamedTuple):
    """Nats per token on the same held-out predictions."""

    unigram: float
    bigram: float
    model: float


class Progress(NamedTuple):
    """Where the training stands."""

    tokens: int
    seconds: float
    share: float
    loss: float


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE of 4096 tokens; the end token is number 0."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=bytes_)
    bpe.train_from_iterator(documents, trainer)
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, model_max_length=CONTEXT, clean_up_tokenization_spaces=False, **ends
    )


def read_corpus(out: Path) -> tuple[PreTrainedTokenizerFast, Corpus]:
    """Read the standard library, train the tokenizer on its training part, encode both parts."""
    files = list(standard_library_files())
    training = [text for path, text in files if not is_held_out(path)]
    held_out = [text for path, text in files if is_held_out(path)]
    tokenizer = train_tokenizer(training)
    tokenizer.save_pretrained(out)
    corpus = Corpus(_encode(tokenizer, training), _encode(tokenizer, held_out), len(held_out))
    return tokenizer, corpus


def _encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tensor:
    encoded = tokenizer.backend_tokenizer.encode_batch(documents)
    return torch.tensor([token for each in encoded for token in [*each.ids, 0]])


def new_model(device: torch.device) -> GPT2LMHeadModel:
    """Make the untrained model: 6 blocks, width 128, 4 heads, tied embeddings, no dropout."""
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 128, "n_layer": 6, "n_head": 4}
    dropout: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    activation = "gelu_pytorch_tanh"  # GPT-2's own formula, in one fused call
    config = GPT2Config(**shape, **dropout, activation_function=activation, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.generation_config.pad_token_id = 0
    model.set_attn_implementation("eager")  # at this size faster than the fused kernel
    torch.nn.Module.to(model, device)
    return model


def batches(tokens: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Yield batches of (context + 1)-token windows for ever: each epoch shifted and shuffled."""
    generator = torch.Generator().manual_seed(plan.seed)
    while True:
        shift = int(torch.randint(CONTEXT, (1,), generator=generator))
        windows = tokens[shift:].unfold(0, CONTEXT + 1, CONTEXT)
        order = torch.randperm(len(windows), generator=generator)
        for chosen in order[: len(order) // plan.batch * plan.batch].view(-1, plan.batch):
            yield windows[chosen].to(plan.device)


def next_token_loss(model: GPT2LMHeadModel, windows: Tensor, *, bfloat16: bool) -> Tensor:
    """Return the mean nats per token of predicting each window's tokens from those before."""
    narrow = torch.autocast(windows.device.type, torch.bfloat16) if bfloat16 else nullcontext()
    with narrow:
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def optimizer_of(model: GPT2LMHeadModel, plan: Plan) -> torch.optim.AdamW:
    """Make AdamW, with weight decay on matrices alone."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate_at(share: float, plan: Plan) -> float:
    """Return the rate once `share` of the run is done: a straight rise, then a cosine."""
    if share < WARM_UP:
        return plan.learning_rate * share / WARM_UP
    turn = (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP))) / 2
    return plan.learning_rate * (ANNEALED_TO + (1 - ANNEALED_TO) * turn)


def train(model: GPT2LMHeadModel, tokens: Tensor, plan: Plan) -> Iterator[Progress]:
    """Train to the end of the plan, yielding after every step."""
    optimizer = optimizer_of(model, plan)
    measure = torch.compile(next_token_loss) if plan.compiled else next_token_loss
    seen, begun, share, average = 0, time.perf_counter(), 0.0, math.log(VOCABULARY)
    for windows in batches(tokens, plan):
        if share >= 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(share, plan)
        loss = measure(model, windows, bfloat16=plan.bfloat16)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += windows.shape[0] * CONTEXT
        seconds = time.perf_counter() - begun
        share = min(1.0, max(seen / plan.tokens, seconds / (60 * plan.max_minutes)))
        average += 0.02 * (float(loss.detach()) - average)
        yield Progress(seen, seconds, share, average)


@torch.no_grad()
def held_out_losses(model: GPT2LMHeadModel, corpus: Corpus) -> Losses:
    """Measure the model in float32 beside what counting alone can do on the same predictions."""
    windows = corpus.held_out.unfold(0, CONTEXT + 1, CONTEXT)
    total = 0.0
    for part in torch.split(windows, 64):
        total += len(part) * float(next_token_loss(model, part.to(model.device), bfloat16=False))
    previous, following = windows[:, :-1].flatten(), windows[:, 1:].flatten()
    unigram, bigram = counted_losses(corpus.training, previous, following)
    return Losses(unigram, bigram, total / len(windows))


def counted_losses(training: Tensor, previous: Tensor, following: Tensor) -> tuple[float, float]:
    """Return the nats per token of a unigram (add one) and a Witten-Bell bigram model.

    p(b|a) = (n(a,b) + t(a) p(b)) / (n(a) + t(a)), t(a) the count of different tokens after a.
    """
    counts = torch.bincount(training, minlength=VOCABULARY).double() + 1
    unigram = counts / counts.sum()
    pairs = torch.bincount(training[:-1] * VOCABULARY + training[1:], minlength=VOCABULARY**2)
    table = pairs.view(VOCABULARY, -1)
    kinds = (table > 0).sum(1).clamp(min=1)[previous]
    smoothed = table[previous, following] + kinds * unigram[following]
    bigram = smoothed / (table.sum(1)[previous] + kinds)
    return -float(unigram[following].log().mean()), -float(bigram.log().mean())


@torch.no_grad()
def samples(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> list[str]:
    """Continue each prompt by 100 tokens at temperature 0.8, from the top 40 tokens."""
    torch.manual_seed(seed)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([[0, *tokenizer.backend_tokenizer.encode(prompt).ids]])
        for _ in range(100):
            logits, likely = model(input_ids=ids.to(model.device)).logits[0, -1].topk(40)
            drawn = torch.multinomial((logits / 0.8).softmax(0), 1)
            ids = torch.cat([ids, likely[drawn][None].cpu()], dim=1)
        texts.append(str(tokenizer.decode(ids[0, 1:])).split(END)[0])
    return texts


def save(model: GPT2LMHeadModel, out: Path, card: str) -> None:
    """Write the model beside its folder, then rename each file into place."""
    beside = out.with_name(f".{out.name}-{os.getpid()}")
    model.save_pretrained(beside)
    (beside / "README.md").write_text(card)
    for file in beside.iterdir():
        file.chmod(0o644)
        file.replace(out / file.name)
    shutil.rmtree(beside)


def card(plan: Plan, progress: Progress, losses: Losses, corpus: Corpus, texts: list[str]) -> str:
    """Write the model card: what it is, how it was made, what it can do."""
    trained = "" if progress.share >= 1 else f" (STILL TRAINING: {progress.share:.0%} of the run)"
    made = f"Python {platform.python_version()}, torch {torch.__version__}, {plan.device}"
    held_out = f"{len(corpus.held_out):,} tokens in {corpus.held_out_documents} documents"
    rate = f"{progress.seconds / 60:.1f} minutes, {progress.tokens / progress.seconds:,.0f} tokens/s"
    counts = {"seen": progress.tokens, "unique": len(corpus.training), "threads": torch.get_num_threads()}
    shown = "\n".join(f"```text\n{text}\n```\n" for text in texts)
    facts = {"trained": trained, "made": made, "documents": held_out, "rate": rate, "samples": shown}
    return CARD.format(**facts, **counts, **vars(plan), **losses._asdict())


CARD = """\
# The subject that ships{trained}

A language model of the GPT-2 architecture, trained by this project on the source of the Python standard library, so
that the demo, the tests and the examples read real activations without a download. It is good for nothing else.

6 blocks, width 128, 4 heads, context 128, tied embeddings, 1,730,560 parameters in float32. Byte-level BPE of 4096
tokens; `<|endoftext|>` (0) ends every document. In a sweep file it is `subject.model: shipped:stdlib-gpt2`, and with
`data.source: python:stdlib` it reads the standard library of the Python that runs it.

Made by
`python examples/train_subject.py --out examples/subject --max-minutes {max_minutes:g}`.

| | |
|---|---|
| training text | {unique:,} tokens: the standard library without its tests and generated tables |
| held out | {documents}, chosen by a hash of their path, never trained on |
| tokens seen | {seen:,}, in {rate} ({threads} thread) |
| with | {made} |
| schedule | to {tokens:,} tokens or {max_minutes:g} minutes, whichever is first |
| optimizer | AdamW, {batch} x 128 tokens a step, peak rate {learning_rate}, cosine, bfloat16 products, seed {seed} |

Loss on text that was never trained on, of the model and of counting alone (lower is better; nats are natural logs):

| on the same held-out predictions | nats per token |
|---|---|
| unigram | {unigram:.4f} |
| bigram (Witten-Bell) | {bigram:.4f} |
| this model, float32, windows of 128 | **{model:.4f}** |

## Samples: temperature 0.8, top 40, the first draw, verbatim

{samples}
Licence: the training text is under the PSF licence, https://docs.python.org/3/license.html, as are its fragments here.
"""


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--tokens", default=23_000_000, show_default=True, help="Training tokens.")
@click.option("--max-minutes", default=math.inf, help="Bring the schedule to its end by then.")
@click.option("--save-every", default=4.0, show_default=True, help="Minutes between saves.")
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
def main(out: Path, tokens: int, max_minutes: float, save_every: float, compiled: bool) -> None:
    """Train on one CPU thread or one GPU, and save every few minutes what there is."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(tokens, max_minutes, 16, 3e-3, True, 0, device, compiled)
    torch.manual_seed(plan.seed)
    tokenizer, corpus = read_corpus(out)
    model = new_model(device)
    due = 60 * save_every
    for step, progress in enumerate(train(model, corpus.training, plan)):
        if step % 100 == 0 or progress.share >= 1:
            click.echo(json.dumps(progress._asdict()))
        if progress.seconds > due or progress.share >= 1:
            due = progress.seconds + 60 * save_every
            losses = held_out_losses(model, corpus)
            click.echo(json.dumps(losses._asdict()))
            save(model, out, card(plan, progress, losses, corpus, samples(model, tokenizer, plan.seed)))


if __name__ == "__main__":
    main()
