"""The expressions of `exclude`: comparisons and arithmetic over dotted keys, parsed by `ast`, never run as code."""

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, NoReturn

from orchestrator.config.validation import near_key
from orchestrator.errors import ConfigError

MAX_LENGTH = 1000
MAX_DEPTH = 50

GRAMMAR = (
    "An expression has dotted keys, numbers, 'text', true, false, null, [lists], "
    "== != < <= > >= in, and or not, + - * / // %, and ( )."
)

_NAMES = {"true": True, "false": False, "null": None}
_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ORDER: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_EQUALITY: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: _same(a, b),
    ast.NotEq: lambda a, b: not _same(a, b),
    ast.In: lambda a, b: any(_same(a, item) for item in b),
    ast.NotIn: lambda a, b: not any(_same(a, item) for item in b),
}


class Expression(NamedTuple):
    """A checked expression."""

    text: str
    """As it was written."""
    location: str
    """Where it was written."""
    tree: ast.expr
    """Only nodes that `holds` knows, only keys that exist."""

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Say whether the expression is true of these values by dotted key.

        Raises:
            ConfigError: it compares or calculates with values that do not fit.
        """
        try:
            return _truth(_value(self.tree, values))
        except (TypeError, ArithmeticError, ValueError) as error:
            raise ConfigError(f"{self.location}: {self.text!r}: {error}", hint=GRAMMAR) from None


def compile_expression(text: str, *, location: str, keys: Collection[str]) -> Expression:
    """Check an expression and return it ready for use.

    Raises:
        ConfigError: a mistake of form, a word outside the grammar, or an unknown key.
    """
    if len(text) > MAX_LENGTH:
        raise ConfigError(f"{location}: an expression is longer than {MAX_LENGTH} characters", hint="Use several.")
    checker = _Checker(text.strip(), location, keys)
    tree = checker.parse()
    checker.check(tree, depth=0)
    return Expression(text, location, tree)


class _Checker(NamedTuple):
    text: str
    location: str
    keys: Collection[str]

    def parse(self) -> ast.expr:
        try:
            return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            self.refuse(f"{error.msg} at character {error.offset or 1}")
        except (ValueError, RecursionError, MemoryError):
            self.refuse("cannot be read")

    def refuse(self, said: str) -> NoReturn:
        raise ConfigError(f"{self.location}: {self.text!r}: {said}", hint=GRAMMAR)

    def check(self, node: ast.expr, *, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.refuse("is nested too deeply")
        match node:
            case ast.Name() | ast.Attribute():
                return self._check_key(node)
            case ast.Constant(value=None | bool() | int() | float() | str()):
                return None
            case ast.Compare(ops=ops, comparators=others):
                for op, other in zip(ops, others, strict=True):
                    self._check_comparison(op, other)
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                pass
            case ast.BoolOp() | ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd()) | ast.List() | ast.Tuple():
                pass
            case _:
                self.refuse(f"{ast.get_source_segment(self.text, node)!r} is not allowed")
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.check(child, depth=depth + 1)
        return None

    def _check_comparison(self, op: ast.cmpop, other: ast.expr) -> None:
        if type(op) not in _ORDER and type(op) not in _EQUALITY:
            self.refuse("'is' is not allowed: write == or !=")
        if isinstance(op, ast.In | ast.NotIn) and not isinstance(other, ast.List | ast.Tuple):
            self.refuse("after 'in' comes a list, such as [16, 32]")

    def _check_key(self, node: ast.Name | ast.Attribute) -> None:
        key = _dotted(node)
        if key not in self.keys and key not in _NAMES:
            near = near_key(key, self.keys)
            written = ast.get_source_segment(self.text, node)
            self.refuse(f"unknown key {written!r}" + (f"; did you mean {near!r}?" if near else ""))


def _dotted(node: ast.AST) -> str:
    match node:
        case ast.Attribute(value=below, attr=name):
            return f"{_dotted(below)}.{name}"
        case ast.Name(id=name):
            return name
    return "?"


def _value(node: ast.AST, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Name() | ast.Attribute():
            return values[_dotted(node)]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, values) for item in items]
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_truth(_value(part, values)) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_truth(_value(part, values)) for part in parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _truth(_value(operand, values))
        case ast.UnaryOp(op=op, operand=operand):
            number = _number(_value(operand, values))
            return -number if isinstance(op, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(_value(left, values)), _number(_value(right, values)))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compare(_value(left, values), ops, [_value(other, values) for other in others])
    raise TypeError("is not allowed")


def _compare(left: Any, ops: list[ast.cmpop], others: list[Any]) -> bool:
    for op, right in zip(ops, others, strict=True):
        if type(op) in _ORDER:
            both_text = isinstance(left, str) and isinstance(right, str)
            result = _ORDER[type(op)](*((left, right) if both_text else (_number(left), _number(right))))
        else:
            result = _EQUALITY[type(op)](left, right)
        if not result:
            return False
        left = right
    return True


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)  # Python's True == 1 is not ours


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        guard = " (a key that may be null: key != null and ...)" if value is None else ""
        raise TypeError(f"{'null' if value is None else repr(value)} is not a number{guard}")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false: compare it with something")
    return value
