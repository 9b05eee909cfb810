"""What a formula is made of once it is read: columns, calls and arithmetic. Frozen values; nothing here evaluates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "CONTRASTS",
    "DEFAULT_K",
    "FUNCTIONS",
    "Call",
    "Column",
    "Contrast",
    "Expression",
    "Literal",
    "Number",
    "Operation",
    "Terms",
    "quoted",
]

# What each function takes besides its first argument, in positional order.
FUNCTIONS: dict[str, tuple[str, ...]] = {
    "C": ("contrast", "levels"),
    "I": (),
    "bs": ("df", "knots", "degree", "lower_bound", "upper_bound", "extrapolation", "lower", "upper"),
    "cc": ("df", "knots", "lower_bound", "upper_bound", "lower", "upper"),
    "center": (),
    "cr": ("df", "knots", "lower_bound", "upper_bound", "extrapolation", "lower", "upper"),
    "exp": (),
    "expm1": (),
    "log": (),
    "log10": (),
    "log1p": (),
    "log2": (),
    "poly": ("degree", "raw"),
    "s": ("k", "by", "lower", "upper"),
    "scale": ("center", "scale", "ddof"),
    "sqrt": (),
}
# Knots of a curve.
DEFAULT_K = 10
CONTRASTS = ("contr.helmert", "contr.sum", "contr.treatment")


@dataclass(frozen=True)
class Column:
    """A metadata column by name."""

    name: str

    @property
    def text(self) -> str:
        return quoted(self.name)

    @property
    def label(self) -> str:
        return self.name

    def columns(self) -> Iterator[str]:
        yield self.name

    def calls(self) -> Iterator[Call]:
        yield from ()


@dataclass(frozen=True)
class Number:
    """A number inside the arithmetic of a call."""

    value: float

    @property
    def text(self) -> str:
        return repr(int(self.value)) if float(self.value).is_integer() else repr(self.value)

    label = text

    def columns(self) -> Iterator[str]:
        yield from ()

    def calls(self) -> Iterator[Call]:
        yield from ()


@dataclass(frozen=True)
class Operation:
    """Arithmetic inside a call: ``left symbol right``, or ``-right`` when left is None."""

    symbol: str
    left: Expression | None
    right: Expression

    def _written(self, part: str) -> str:
        left = "" if self.left is None else f"{getattr(self.left, part)} "
        gap = " " if left else ""
        return f"({left}{self.symbol}{gap}{getattr(self.right, part)})"

    @property
    def text(self) -> str:
        return self._written("text")

    @property
    def label(self) -> str:
        return self._written("label")

    def columns(self) -> Iterator[str]:
        for side in (self.left, self.right):
            if side is not None:
                yield from side.columns()

    def calls(self) -> Iterator[Call]:
        for side in (self.left, self.right):
            if side is not None:
                yield from side.calls()


@dataclass(frozen=True)
class Contrast:
    """How the levels of a factor become columns: ``contr.treatment("A")``."""

    name: str
    base: str | float | bool | None = None

    @property
    def text(self) -> str:
        return self.name if self.base is None else f"{self.name}({_written(self.base)})"


Literal = str | float | bool | None | Contrast | tuple["str | float | bool | None", ...]


@dataclass(frozen=True)
class Call:
    """One of :data:`FUNCTIONS` applied to an expression, with literal options."""

    function: str
    argument: Expression
    options: tuple[tuple[str, Literal], ...] = ()

    @property
    def text(self) -> str:
        return self._written(self.argument.text)

    @property
    def label(self) -> str:
        return self._written(self.argument.label)

    def _written(self, argument: str) -> str:
        if isinstance(self.argument, Operation):
            argument = argument[1:-1]
        return f"{self.function}({', '.join([argument, *(f'{key}={_shown(v)}' for key, v in self.options)])})"

    def columns(self) -> Iterator[str]:
        yield from self.argument.columns()

    def calls(self) -> Iterator[Call]:
        """Yield the calls inside, innermost first, and this one."""
        yield from self.argument.calls()
        yield self


Expression = Column | Number | Operation | Call
Terms = tuple[tuple[Column | Call, ...], ...]  # a term is the product of its factors; the intercept isn't listed


def _shown(value: Literal) -> str:
    if isinstance(value, Contrast):
        return value.text
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return _written(value)


def _written(value: str | float | bool | None) -> str:
    """Return a literal as it is written in a formula: without Python's escapes, which formulas don't allow."""
    if not isinstance(value, str):
        return repr(value)
    return f"'{value}'" if "'" not in value else f'"{value}"'


def quoted(name: str) -> str:
    """Return a column name as a formula writes it: in backticks unless it is an identifier.

    Examples
    --------
    >>> quoted("age"), quoted("age at scan")
    ('age', '`age at scan`')
    """
    plain = re.fullmatch(r"[^\W\d]\w*", name) and name not in {"True", "False", "None"}
    return name if plain else "`" + name.replace("`", "``") + "`"
