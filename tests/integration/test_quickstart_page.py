"""The commands of docs/quickstart.md and study.md, in order, in an empty folder: each runs, and prints what is shown.

The page is read, not copied: a fenced block with a `title="NAME"` is the file NAME, and in a block `console` a line
that begins with `$ ` is a command, those below it what it prints. Shown and printed lines agree when they are the same
but for numbers, bars, times, the spaces between words and the names of the two workers; `...` stands for any text
within a line, and for any lines on a line of its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.small_world import ROOT

QUICKSTART, STUDY = (ROOT / "docs" / name for name in ("quickstart.md", "study.md"))
MARK = "\x1e"
"""What the shell prints before each command's output."""
_NUMBER = re.compile(r"(?:\d+[dhm])*[+−-]?\d[\d.,:_]*(e[+-]?\d+)?[kMG%s]?|(?<=\s)[–-](?=\s|$)")
_DRAWN = re.compile(r"[▁▂▃▄▅▆▇█━─╸╺]+")
_WORKERS = re.compile(r"\b(here|other)\b")


class Step(NamedTuple):
    """A command and what the page shows of its output."""

    command: str
    shown: list[str]


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.M | re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line[2:], []))
            else:
                found[-1].shown.append(line)
    return found


def files(page: str) -> dict[str, str]:
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', page, re.M | re.S))


def plain(line: str) -> str:
    """Return a line without what may differ from run to run."""
    masked = _WORKERS.sub("@", _DRAWN.sub("~", _NUMBER.sub("#", line)))
    return " ".join(masked.split())


def pattern(shown: list[str]) -> re.Pattern[str]:
    """Return what the lines of an output must match, `plain` and each ended by a newline."""
    parts = []
    for line in filter(None, map(plain, shown)):
        words = ".*".join(re.escape(part) for part in line.split("..."))
        parts.append("(?:.*\n)*?" if line == "..." else f"{words}\n")
    return re.compile("".join(parts))


def run(page: Path, folder: Path) -> list[str]:
    """Run the commands of a page in one shell, until one fails; return what each printed, errors among it."""
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    python = f'PYTHONPATH="{ROOT}" "{sys.executable}"'
    programs = {"python": python, "orch": f"{python} -m orchestrator"}
    for name, program in programs.items():
        (bin_folder / name).write_text(f'#!/bin/sh\n{program} "$@"\n')
        (bin_folder / name).chmod(0o755)
    place = folder / "empty"
    place.mkdir()
    for name, text in files(page.read_text(encoding="utf-8")).items():
        (place / name).write_text(text, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ORCH_", "MLFLOW_"))}
    environ |= {
        "PATH": f"{bin_folder}:{environ['PATH']}", "CLONE": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "120",
        # A trainer takes seconds to start, and MLflow's own store to make.
        "HF_HUB_OFFLINE": "1", "ORCH_TRACKING_URL": "http://127.0.0.1:1", "ORCH_JOBS_PER_TRAINER": "36",
    }  # fmt: skip
    commands = [step.command for step in steps(page.read_text(encoding="utf-8"))]
    script = "\n".join(["set -e", *(line for command in commands for line in (f"printf '{MARK}'", command))])
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=environ, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=850,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout.split(MARK)[1:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        (QUICKSTART, {"init", "enqueue", "worker", "status", "show", "fit", "report"}),
        (STUDY, {"enqueue", "worker", "status", "extend", "reprioritise", "show", "fit", "report", "hide", "delete"}),
    ],
    ids=["quickstart", "study"],
)
def test_the_ladder_is_climbed_as_it_is_written(page: Path, wanted: set[str], tmp_path: Path) -> None:
    ladder = steps(page.read_text(encoding="utf-8"))
    verbs = {words[1] for step in ladder if (words := re.sub(r"^(\w+=\S+ )*", "", step.command).split())[0] == "orch"}
    assert verbs >= wanted
    printed = run(page, tmp_path)
    for step, output in zip(ladder, printed, strict=True):
        said = (line for line in map(plain, output.splitlines()) if line and " tracking: " not in line)
        lines = "".join(f"{line}\n" for line in said)
        assert pattern(step.shown).fullmatch(lines), f"$ {step.command}\nprinted\n{output}\nand the page shows\n" + (
            "\n".join(step.shown)
        )


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        (["fvu 0.4500  job 3"], "fvu 0.1   job 12", True),
        (["fvu 0.4500  job 3"], "fvu 0.1   jobs 12", False),
        (["a", "...", "z"], "a\nb\nc\nz", True),
        (["a", "...", "z"], "a\nb\nc", False),
        (["at .../orch.db"], "at /somewhere/orch.db", True),
        (["job 1: here"], "job 2: other", True),
        (["█▆▁  >23.3k"], "█▁  >1.05M", True),
        (["07:22:57  24s"], "07:22:57  1m05s", True),
        ([], "a word too many", False),
    ],
)
def test_what_counts_as_agreement(shown: list[str], printed: str, agree: bool) -> None:
    lines = "".join(f"{plain(line)}\n" for line in printed.splitlines())
    assert bool(pattern(shown).fullmatch(lines)) == agree
