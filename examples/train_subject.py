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
from typing import NamedTuple

import click
import torch
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from worker.standard_library import is_held_out, standard_library_files

VOCABULARY = 4096
CONTEXT = 128
END = "<|endoftext|>"
PROMPTS = ("def ", "class ", "import os\nimport ", '    """Return ')
ANNEALED_TO = 0.02


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
    """Peak, reached after `warmup` of the run."""
    warmup: float
    """Share of the run spent rising to the peak."""
    bfloat16: bool
    """Multiply matrices in bfloat16; weights and optimizer stay float32."""
    seed: int
    """Of the weights, the order of the windows, and the samples."""
    device: torch.device
    """Where the model lives."""


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
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
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


def new_model() -> GPT2LMHeadModel:
    """Make the untrained model: 6 blocks, width 128, 4 heads, tied embeddings, no dropout."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=6,
        n_head=4,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own formula, in one fused call
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def batches(tokens: Tensor, plan: Plan) -> Iterator[Tensor]:
    """Yield batches of (context + 1)-token windows for ever: each epoch shifted and shuffled."""
    generator = torch.Generator().manual_seed(plan.seed)
    while True:
        shift = int(torch.randint(CONTEXT, (1,), generator=generator))
        windows = tokens[shift:].unfold(0, CONTEXT + 1, CONTEXT)
        order = torch.randperm(len(windows), generator=generator)
        for chosen in order.split(plan.batch):
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
    if share < plan.warmup:
        return plan.learning_rate * share / plan.warmup
    turn = (1 + math.cos(math.pi * (share - plan.warmup) / (1 - plan.warmup))) / 2
    return plan.learning_rate * (ANNEALED_TO + (1 - ANNEALED_TO) * turn)


def train(model: GPT2LMHeadModel, tokens: Tensor, plan: Plan) -> Iterator[Progress]:
    """Train to the end of the plan, yielding after every step."""
    optimizer = optimizer_of(model, plan)
    seen, begun, share, average = 0, time.perf_counter(), 0.0, math.log(VOCABULARY)
    for windows in batches(tokens, plan):
        if share >= 1:
            return
        rate = learning_rate_at(share, plan)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = next_token_loss(model, windows, bfloat16=plan.bfloat16)
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
    total = sum(
        len(part) * float(next_token_loss(model, part.to(model.device), bfloat16=False))
        for part in windows.split(64)
    )
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
    table = pairs.view(VOCABULARY, VOCABULARY)
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
        file.replace(out / file.name)
    shutil.rmtree(beside)
