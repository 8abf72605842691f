"""A sweep file is parsed, never executed, and no text of one takes long to parse."""

import time
from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.sweep import expand
from orchestrator.sweep.expansion import MAX_POINTS

SECONDS = 10.0
"""Of CPU, for what takes milliseconds."""
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)
)


def _refused(text: str, tmp_path: Path) -> str:
    file = tmp_path / "evil.yaml"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        expand(file)
    assert time.process_time() - started < SECONDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.yaml"]
    return caught.value.message


@pytest.mark.parametrize(
    "rule",
    [
        "__import__('os').system('touch {here}/ran')",
        "open('{here}/ran', 'w')",
        "().__class__.__base__.__subclasses__()",
        "sae.k.__class__ == 1",
        "sae.__class__.__mro__ == 1",
        "__builtins__ == 1",
        "__builtins__.eval == 1",
        "sae.k.real == 1",
        "'{{0.__class__}}'.format(sae.k) == 'x'",
        "(lambda: 1)() == 1",
        "[x for x in [1]] == [1]",
        "any(x for x in [1])",
        "9 ** 9 ** 9 ** 9 == 1",
        "1 << 99999999999 == 1",
        "'x' * 99999999999 == 'x'",
        "[1] * 99999999999 == [1]",
        "'%99999999999d' % 1 == 'x'",
        "(y := 1) == 1",
        "sae.k == " + "9" * 900 + " // 0",
        "(" * 900 + ")" * 90,
        "1 == 1" + " or 1 == 1" * 9999,
        "not " * 240 + "true",
    ],
)  # fmt: skip
def test_a_rule_of_exclude_computes_and_does_nothing_else(rule: str, tmp_path: Path) -> None:
    text = rule.replace("{here}", str(tmp_path)).replace("\\", "\\\\").replace('"', '\\"')
    _refused(f'sae.k: 3\nexclude: ["{text}"]\n', tmp_path)


def test_the_longest_sums_are_quick(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(f"sae.k: 3\nexclude: ['{'*'.join(['9' * 60] * 16)} == 1']\n")
    started = time.process_time()
    assert len(expand(tmp_path / "long.yaml").configs) == 1
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: !!python/object/apply:os.system ['touch ran']", "tag"),
        ("name: !!python/name:os.system", "is no python/name"),
        ("name: !!python/object/new:os.mkdir [ran]", "tag"),
        ("name: !own {}", "tag"),
        (LAUGHS, "endless"),
        ("labels: &a {b: *a}", "endless|alias"),
        ("[" * 5000 + "]" * 5000, "nested|YAML"),
        ("sae.k: " + "9" * 5000, "no int"),
        ("sweep: [{grid: {sae.k: {range: [1, 1e300, 1]}}}]", "values"),
        ("sweep: [{grid: {sae.k: {lin: [1, 2, 999999999999]}}}]", "values"),
        ("sweep: [{grid: {sae.k: {pow2: [0, 999999999999]}}}]", "exponents"),
        ("sweep: [{grid: {sae.k: {log: [1, 2, 1e18]}, training.seed: {range: [1, 9999, 1]}}}]", "values"),
        (
            "sweep: [{grid: {sae.k: {range: [1, 9999, 1]}, training.seed: {range: [1, 9999, 1]}, "
            "data.seed: {range: [1, 9999, 1]}}}]",
            f"points; {MAX_POINTS}",
        ),
    ],
)
def test_a_sweep_file_is_data(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(word in _refused(text, tmp_path) for word in said.split("|"))
