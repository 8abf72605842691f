"""YAML text -> values with their locations; YAML 1.2 numbers and booleans, duplicate keys refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from orchestrator import bounded_file
from orchestrator.errors import ConfigError

MAX_NODES = 200_000  # aliases of aliases can make a short file expand without end
MAX_NUMERAL = 400
STANDARD_INPUT = Path("-")

_TAG = "tag:yaml.org,2002:"
_CONVERT: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": lambda text: int(text, 0) if text[:2] in ("0x", "0o") else int(text),
    "float": lambda text: float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower())),
}


class Node(NamedTuple):
    """A value and where it was written."""

    value: Any
    """A scalar, a list of nodes, or a dict from keys to nodes."""
    location: str
    """file:line:column, or the override it was typed in."""
    key_location: str = ""
    """Where the key of this value was written."""

    def plain(self) -> Any:
        """Return the value without locations."""
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        return self.value


class _Loader(yaml.SafeLoader):
    """Composes nodes; plain scalars resolve by YAML 1.2, so 1e-4 is a number and `no` is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own attribute)


_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    f"{_TAG}int", re.compile(r"(?:[-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"""(?:[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+.0123456789"),
)


def read_text(path: Path) -> str:
    """Return the text of a file; of standard input, where the path is `-`.

    Raises:
        ConfigError: no such file, a folder, not readable, too large, or not text.
    """
    try:
        return _bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file", hint="Check the path; it is read relative to this folder.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder", hint="Give the path of one YAML file.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text", hint="A sweep file is YAML, written in UTF-8.") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: {reason}", hint="Give the path of a readable YAML file.") from None


def _bytes(path: Path) -> bytes:
    # Standard input is not sys.stdin, which is None where there is none.
    place: Path | int = 0 if path == STANDARD_INPUT else path
    with open(place, "rb", closefd=place != 0) as file:
        return bounded_file.read(file, str(path), what="a sweep file")


def parse_text(text: str, source: str, *, lines: bool = True) -> Node:
    """Return the one document in a text; `source` names it in messages, with line and column unless lines is off.

    Raises:
        ConfigError: not YAML, a duplicate key, a tag, or an endless alias.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        return Node(None, source) if node is None else _Reader(source, lines=lines).convert(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        location = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark and lines else source
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(
            f"{location}: {said}", hint="That is not YAML: check quotes, brackets and indentation."
        ) from None
    except yaml.YAMLError as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"{source}: is not text: {said}", hint="A sweep file is YAML, written in UTF-8.") from None
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply", hint="A sweep file needs a handful of levels.") from None


class _Reader:
    """Converts composed nodes to Python values with their locations."""

    def __init__(self, source: str, *, lines: bool) -> None:
        self._source = source
        self._lines = lines
        self._open: set[int] = set()
        self._count = 0

    def convert(self, node: yaml.Node) -> Node:
        """Return one node with everything below it."""
        self._count += 1
        if id(node) in self._open or self._count > MAX_NODES:
            self._refuse(node, "an alias makes this endless", "Write the values out.")
        self._open.add(id(node))
        try:
            return Node(self._value(node), self._location(node))
        finally:
            self._open.discard(id(node))

    def _value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.convert(item) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_TAG):
            return self._scalar(node)
        return self._refuse(node, f"the tag {node.tag!r} is not read here", "Write a plain value.")

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(key, "a key must be text", "Write key: value.")
            name = self._text(key)
            if name in found:
                self._refuse(key, f"{name!r} is written twice", f"It stands first at {found[name].key_location}.")
            found[name] = self.convert(value)._replace(key_location=self._location(key))
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return self._text(node)
        try:
            if len(node.value) > MAX_NUMERAL:
                raise ValueError
            return _CONVERT[kind](node.value)
        except (ValueError, KeyError):
            return self._refuse(node, f"{node.value[:40]!r} is no {kind}", "Write a plain number or text.")

    def _text(self, node: yaml.ScalarNode) -> str:
        text = str(node.value)
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
            self._refuse(node, "this text holds a character that cannot be stored", "Take out \\0 and lone surrogates.")
        return text

    def _location(self, node: yaml.Node) -> str:
        mark = node.start_mark
        return f"{self._source}:{mark.line + 1}:{mark.column + 1}" if self._lines else self._source

    def _refuse(self, node: yaml.Node, message: str, hint: str) -> NoReturn:
        raise ConfigError(f"{self._location(node)}: {message}", hint=hint)
