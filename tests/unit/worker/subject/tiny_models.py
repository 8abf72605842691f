"""Real models of every family, a few thousand random weights each, and a tokenizer trained on a sentence."""

from importlib import import_module
from pathlib import Path
from typing import Any

FAMILIES = ("gpt2", "gpt_neox", "gpt_neox_serial", "llama", "gemma", "gemma2", "gpt_neo", "qwen2", "opt")
WIDTH, INNER, LAYERS, VOCABULARY, CONTEXT = 16, 24, 3, 64, 32
TEXT = "the quick brown fox jumps over the lazy dog and runs away. "


def config_of(family: str) -> Any:
    t: Any = import_module("transformers")
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": VOCABULARY}
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": CONTEXT}
    if family == "gpt2":
        return t.GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_inner=INNER, n_positions=CONTEXT, **ids)
    if family == "gpt_neo":
        types = [[["global", "local"], 2]]
        return t.GPTNeoConfig(
            hidden_size=WIDTH, num_layers=4, num_heads=2, intermediate_size=INNER, attention_types=types,
            max_position_embeddings=CONTEXT, **ids,
        )  # fmt: skip
    if family == "opt":
        return t.OPTConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, ffn_dim=INNER, num_attention_heads=2,
            max_position_embeddings=CONTEXT, word_embed_proj_dim=WIDTH, **ids,
        )  # fmt: skip
    if family.startswith("gpt_neox"):
        return t.GPTNeoXConfig(
            **sizes, **ids, max_position_embeddings=CONTEXT, use_parallel_residual=family == "gpt_neox"
        )
    kinds = {"llama": t.LlamaConfig, "gemma": t.GemmaConfig, "gemma2": t.Gemma2Config, "qwen2": t.Qwen2Config}
    return kinds[family](**sizes, **heads, **ids)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def save_model(family: str, folder: Path, *, seed: int = 0) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    maker: Any = AutoModelForCausalLM
    model = maker.from_config(config_of(family))
    # Initial weights of 0.02 would let every branch vanish beside the stream.
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
