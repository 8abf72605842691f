"""Keys that count tokens take 50M wherever they take a number, and the config is that of the number."""

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.sweep import expand
from orchestrator.units import row_id, token_count

FILE = """
version: 1
name: units
data: {max_tokens: 1.5B}
overrides: {training.max_tokens: @, training.heldout_tokens: 20k}
sweep:
  - grid: {optimizer.warmup_tokens: [200k, 400_000]}
  - zip: {training.dead_after_tokens: {lin: [1M, 3M, 3]}, sae.k: [4, 8, 16]}
"""


def ids(folder: Path, text: str, *overrides: str) -> list[str]:
    file = folder / "units.yaml"
    file.write_text(text)
    return [config.config_id for config in expand(file, overrides).configs]


def test_a_sweep_with_units_is_that_with_numbers(tmp_path: Path) -> None:
    plain = FILE.replace("1.5B", "1500000000").replace("20k", "20000").replace("200k", "200000")
    plain = plain.replace("1M, 3M", "1000000, 3000000").replace("@", "50000000")
    found = ids(tmp_path, FILE.replace("@", "50M"))
    assert found == ids(tmp_path, plain)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("2M", "2000000"), ("1M,4M", "1000000,4000000"), ("log(1M,4M,3)", "log(1000000,4000000,3)"), ("1.5k", "1500")],
)
def test_overrides_take_them_too(typed: str, meant: str, tmp_path: Path) -> None:
    text = "version: 1\nname: units\ntraining: {batch_tokens: 512}\n"
    assert ids(tmp_path, text, f"training.max_tokens={typed}") == ids(tmp_path, text, f"training.max_tokens={meant}")


@pytest.mark.parametrize("value", ["50X", "1.5", "M", "0k", "-5M", "9e99T"])
def test_what_counts_no_tokens_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.max_tokens"):
        ids(tmp_path, FILE.replace("@", value))


def test_no_other_key_takes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sae\.k"):
        ids(tmp_path, FILE.replace("@", "50M"), "sae.k=1k")


def test_the_parser() -> None:
    assert [token_count(text) for text in ("1.5B", "2.5G", "5e7", "50_000_000", "1.5", "")] == [
        1_500_000_000, 2_500_000_000, 50_000_000, 50_000_000, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("8", 8), ("007", 7), ("0", 0), (str(2**31 - 1), 2**31 - 1), (str(2**31), None), ("9" * 20, None),
        ("9" * 5000, None), ("²", None), ("٣", None), ("-1", None), ("", None), ("1.0", None), (" 1", None),
    ],
)  # fmt: skip
def test_an_id_is_of_digits_and_no_larger_than_any_row_has(typed: str, meant: int | None) -> None:
    assert row_id(typed) == meant
