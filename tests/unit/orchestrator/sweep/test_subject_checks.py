"""What a sweep is refused for before it is queued, by files of models on this disk; and what is left to trainers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.job import SHIPPED_SUBJECT
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from orchestrator.estimates.subject_files import SHIPPED_FOLDER, has_bos, model_folder, module_names
from orchestrator.sweep import check_subjects


def check(model: str = SHIPPED_SUBJECT, **values: Any) -> None:
    parts: dict[str, Any] = {"subject": {"model": model}}
    for key, value in values.items():
        part, _, name = key.partition("__")
        parts.setdefault(part, {})[name] = value
    check_subjects([parse(parts)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the model that ships, which can be changed."""
    return Path(shutil.copytree(SHIPPED_FOLDER, tmp_path / "model"))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subject__layer": 6}, r"(?s)layer = 6, and .* has 6 blocks.*0 to 5"),
    ({"subject__layers": [0, 6]}, r"(?s)layers = \[0, 6\], and .* has 6 blocks.*0 to 5"),
    ({"data__context_length": 129}, r"(?s)context_length = 129.*128 at most.*128 or less"),
    ({"data__context_length": 1, "data__prepend_bos": True}, "leaves no room"),
    ({"subject__hook": "transformer.h.1.mlpp"}, r"(?s)transformer.h.1 has no 'mlpp'.*mlp"),
    ({"subject__hook": "transformer.h.6.mlp"}, r"(?s)transformer.h has no '6'.*6, counted from 0"),
    ({"subject__hook": "transfomer.h.1"}, r"(?s)no module 'transfomer'.*transformer"),
    ({"sae__n_latents": 10**15}, r"takes [\d,]+ TiB of memory"),
    ({"sae__expansion": 10**12}, r"takes [\d,]+ TiB of memory"),
    ({"sae__k": 2000}, r"k = 2000 is above the 1024 latents"),
    ({"data__max_tokens": 18_000}, r"(?s)max_tokens = 18000 leaves 1536 tokens.*less than a batch of 2048"),
]
ALLOWED: list[dict[str, Any]] = [
    {},
    {"subject__layer": 5, "data__context_length": 128, "data__prepend_bos": True},
    {"subject__layers": "all"},
    {"subject__layers": [0, 5]},
    {"subject__hook": "transformer.h.1.mlp.c_fc"},
    {"subject__hook": "transformer.h.1.mlp.act"},  # it has no weights
    {"subject__hook": "transformer.h.5.attn.attn_dropout"},
    {"subject__hook": "lm_head"},  # tied: not in the file
    {"data__max_tokens": 20_000},
]


@pytest.mark.parametrize(("values", "said"), REFUSED)
def test_what_does_not_fit_is_refused(values: dict[str, Any], said: str, folder: Path) -> None:
    for model in (SHIPPED_SUBJECT, str(folder)):
        with pytest.raises(ConfigError, match=said):
            check(model, **values)


@pytest.mark.parametrize("values", ALLOWED)
def test_what_may_fit_is_not(values: dict[str, Any], folder: Path) -> None:
    check(**values)
    check(str(folder), **values)


def test_every_module_of_the_model_may_be_named() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    maker: Any = AutoModelForCausalLM
    model = maker.from_config(AutoConfig.from_pretrained(SHIPPED_FOLDER))
    names = [name for name, _ in model.named_modules() if name]
    assert len(names) > 50
    for name in names:
        check(subject__hook=name)


def test_of_a_model_that_is_not_here_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for values, _ in REFUSED[:2]:
        check("some/model", **values)
    with pytest.raises(ConfigError, match="TiB"):
        check("some/model", sae__n_latents=10**15)


def test_the_copy_in_the_hubs_cache_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    copies = tmp_path / "models--some--model"
    for commit, branch, layers in (("aaa", "main", 6), ("bbb", "big", 12)):
        snapshot = Path(shutil.copytree(folder, copies / "snapshots" / commit))
        config = json.loads((snapshot / "config.json").read_text()) | {"n_layer": layers}
        (snapshot / "config.json").write_text(json.dumps(config))
        (copies / "refs").mkdir(exist_ok=True)
        (copies / "refs" / branch).write_text(commit)
    check("some/model", subject__layer=5)
    with pytest.raises(ConfigError, match="has 6 blocks"):
        check("some/model", subject__layer=6)
    for revision in ("big", "bbb"):
        check("some/model", subject__layer=11, subject__revision=revision)
        with pytest.raises(ConfigError, match="has 12 blocks"):
            check("some/model", subject__layer=12, subject__revision=revision)
    check("some/model", subject__layer=99, subject__revision="not here")


@pytest.mark.parametrize(
    ("tokenizer_config", "added", "expected"),
    [
        ({"bos_token": None}, ["<s>"], False),
        ({"bos_token": "<s>"}, [], True),
        ({"bos_token": {"content": "<s>"}}, [], True),
        ({"eos_token": "</s>"}, ["</s>"], False),
        ({"eos_token": "</s>"}, ["<s>", "</s>"], None),
        (None, ["</s>"], None),
    ],
)
def test_a_bos_token_by_the_files(
    tokenizer_config: dict[str, Any] | None, added: list[str], expected: bool | None, folder: Path
) -> None:
    (folder / "tokenizer_config.json").unlink()
    if tokenizer_config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    tokens = [{"id": number, "content": content, "special": True} for number, content in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    assert has_bos(folder) is expected
    if expected is False:
        with pytest.raises(ConfigError, match="no BOS token"):
            check(str(folder), data__prepend_bos=True)
    else:
        check(str(folder), data__prepend_bos=True)


def test_a_damaged_folder_says_nothing(folder: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json"):
        for content in (b"", b"[]", b"\xff" * 100, b"[" * 100_000):
            (folder / name).write_bytes(content)
            check(str(folder), subject__layer=3, data__prepend_bos=True)
    check(str(folder), subject__hook="transformer.h.99")
    assert module_names(folder) == frozenset()
    assert model_folder(parse({"subject": {"model": str(folder)}}).subject) == folder


def test_no_torch_is_loaded() -> None:
    program = "import sys, tests.unit.orchestrator.sweep.test_subject_checks as t; t.check(subject__layer=5); "
    program += "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_all_layers_of_one_block_are_refused(folder: Path) -> None:
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"n_layer": 1}))
    with pytest.raises(ConfigError, match=r"(?s)layers = all, and .* has 1 block, .* one layer.*subject.layer: 0"):
        check(str(folder), subject__layers="all")
    check(str(folder), subject__layers=[0])
