"""Forward batches: a context's values do not depend on its company; how many tokens a GPU's memory is given."""

from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.config.job import SHIPPED_SUBJECT, JobConfig
from tests.unit.worker.activations.tiny_stream import make_parts
from tests.unit.worker.subject.tiny_models import FAMILIES, save_model
from worker.activations.forward import ForwardBatches, attention, bytes_per_token, tokens_per_pass, tokens_within
from worker.data.token_file import TokenFile
from worker.subject.model import Subject, load


def forward_of(config: JobConfig, folder: Path) -> ForwardBatches:
    subject: Subject = load(config.subject)
    text = np.random.default_rng(0).integers(0, subject.vocabulary, 40_000).astype(np.uint16)
    text.tofile(folder / "text.u16")
    return ForwardBatches([subject], TokenFile(folder / "text.u16", "x", len(text), int(text.max()), 32, ()))


@pytest.mark.parametrize(
    ("model", "dtype", "threads"),
    [
        *((family, "float32", 1) for family in FAMILIES),
        ("llama", "bfloat16", 2),
        *((SHIPPED_SUBJECT, dtype, threads) for dtype in ("float32", "bfloat16") for threads in (1, 2)),
    ],
)
def test_company_does_not_matter(tmp_path: Path, model: str, dtype: str, threads: int) -> None:
    where = model if model == SHIPPED_SUBJECT else str(save_model(model, tmp_path / "model"))
    torch.set_num_threads(threads)
    try:
        forward = forward_of(JobConfig.model_validate({"subject": {"model": where, "dtype": dtype}}), tmp_path)
        assert forward.size == 128
        whole = forward(np.arange(128))[0]
        other = np.random.default_rng(1).permutation(1000)[:128]
        other[[5, 77, 127]] = 40, 0, 127
        assert torch.equal(forward(other)[0][[5, 77, 127]], whole[[40, 0, 127]])
        # Few contexts are filled up to a whole pass.
        assert torch.equal(forward(np.array([40, 3]))[0], whole[[40, 3]])
    finally:
        torch.set_num_threads(1)


def test_each_hook_point_is_read_once(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    low = parts.subject.at(parts.config.subject.model_copy(update={"layer": 0}))
    forward = ForwardBatches([parts.subject, low, parts.subject], parts.tokens)
    assert forward.subjects == [parts.subject, low]
    assert [found.shape for found in forward(np.arange(3))] == [(3, 16, 16)] * 2


def test_tokens_of_a_pass_are_a_power_of_two_that_fits() -> None:
    assert [tokens_within(n, 1000) for n in (10**3, 3_000_000, 8_192_000, 10**12)] == [2048, 2048, 8192, 65_536]


def test_memory_of_a_pass_grows_with_what_attention_keeps(tmp_path: Path) -> None:
    subject = load(JobConfig.model_validate({"subject": {"model": str(save_model("gpt2", tmp_path / "gpt2"))}}).subject)
    assert attention(subject) == "sdpa"
    assert tokens_per_pass(subject, 32) == 4096
    lean = bytes_per_token(subject, 32)
    assert lean == 4 * 12 * 64
    subject.model.set_attn_implementation("eager")
    assert bytes_per_token(subject, 32) == lean + 4 * 3 * 2 * 32
