"""The terminal: what is written to it, how wide it is, and whether a person can be asked.

All output passes `echo`, `echo_json`, `note` or `written`: secrets are masked there, and control characters of others
written out; colours are ours alone, made by `style`.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from orchestrator.masking import clean, escape, mask_all

ESCAPE = chr(0x100000 + int.from_bytes(os.urandom(2)) % 0xFFF0)
"""Stands for ESC in text of ours until it is written: one of this process alone, which no foreign text can hold."""
_UNSEEN = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What JSON leaves as it is, and a terminal obeys."""


@dataclass
class Invocation:
    """The global options of this call."""

    debug: bool = False
    no_input: bool = False


def is_live() -> bool:
    """Say whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def width() -> int | None:
    """Return the columns of the terminal; None when a program reads the output, which gets everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wants_colour() -> bool:
    """Say whether standard output gets ANSI colours."""
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.color is not None:
        return ctx.color
    return is_live() and not os.environ.get("NO_COLOR")


def style(text: str, **styles: Any) -> str:
    """Return a text in colours (as `click.style`), for `written` to write."""
    return click.style(escape(text), **styles).replace("\x1b", ESCAPE)


def written(text: str) -> str:
    """Return a text as it may be written: without secrets, and with no other codes for the terminal than `style`'s."""
    return clean(text).replace(ESCAPE, "\x1b")


def echo(text: str = "") -> None:
    """Write a line of data to standard output."""
    click.echo(written(text), color=wants_colour())


def echo_exact(text: str) -> None:
    """Write a document of our own making to standard output, as it would go to a file."""
    click.echo(text, nl=False)


def echo_json(value: Mapping[str, Any], *, lines: bool = False) -> None:
    """Write an object: indented, or with `lines` as one line that is seen at once."""
    text = json.dumps(mask_all(value), allow_nan=False, ensure_ascii=False, indent=None if lines else 2)
    click.echo(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def envelope(schema: str, items: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the one shape of everything -o json prints."""
    return {"schema": f"orch.{schema}/1", "items": list(items)}


def note(text: str) -> None:
    """Write a line for the person to standard error."""
    click.echo(written(text), err=True, color=_error_colour())


def warn(text: str, hint: str = "") -> None:
    """Warn on standard error."""
    complain(f"Warning: {text}", hint, colour="yellow")


def complain(text: str, hint: str = "", *, colour: str = "red") -> None:
    """Write a message to standard error, its first word in colour, and what to do on the next line."""
    head, colon, rest = text.partition(":")
    styled = style(head + colon, fg=colour, bold=True) + rest if colon else text
    note(styled + (f"\n{hint}" if hint else ""))


def confirm(question: str, *, yes: bool) -> None:
    """Ask for confirmation; raise when the answer is no, or no person can be asked.

    Raises:
        UsageError: --no-input, or no terminal, without --yes.
        Abort: the person said no.
    """
    if yes:
        return
    ctx = click.get_current_context()
    if ctx.ensure_object(Invocation).no_input or not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is nobody to ask: say so with --yes.", ctx=ctx)
    click.confirm(written(question), abort=True, err=True)


def _error_colour() -> bool | None:
    ctx = click.get_current_context(silent=True)
    if ctx is not None and ctx.color is not None:
        return ctx.color
    return False if os.environ.get("NO_COLOR") else None
