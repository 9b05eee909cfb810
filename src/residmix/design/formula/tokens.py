"""The text of a formula cut into tokens, and the errors that point at one."""

from __future__ import annotations

import re
from typing import NoReturn

__all__ = ["FormulaError", "Tokens"]

# Bounds on what a short text may ask for.
MAX_LENGTH, MAX_DEPTH, MAX_DIGITS = 20_000, 40, 40

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)
    | `(?P<quoted>(?:[^`]|``)*)`
    | (?P<string>"[^"\\\n]*"|'[^'\\\n]*')
    | (?P<operator>\*\*|[-+:*/()\[\],=~])
    )""",
    re.VERBOSE,
)


class FormulaError(ValueError):
    """A formula holds something that isn't allowed or makes no sense."""


class Tokens:
    """The tokens of one formula, and how far it has been read."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise FormulaError(f"a formula is a string such as 'age + C(site)', not {type(text).__name__}")
        if len(text) > MAX_LENGTH:
            raise FormulaError(f"the formula is {len(text)} characters long; at most {MAX_LENGTH} are allowed")
        self.text, self.depth, self.at, self.operations, self.knots = text, 0, 0, 0, 0
        self.tokens: list[tuple[str, str, int]] = []
        place, end = 0, len(text.rstrip())
        while place < end:
            match = _TOKEN.match(text, place)
            if match is None:
                place += len(text[place:]) - len(text[place:].lstrip())
                self.refuse(f"{text[place]!r} is not allowed in a formula", place)
            kind = str(match.lastgroup)
            if kind == "number" and len(match.group(kind)) > MAX_DIGITS:
                self.refuse(f"a number can have at most {MAX_DIGITS} characters", match.start(kind))
            self.tokens.append((kind, match.group(kind), match.start(kind)))
            place = match.end()
        self.tokens.append(("end", "", end))

    def refuse(self, why: str, place: int | None = None) -> NoReturn:
        place = self.tokens[self.at][2] if place is None else place
        first = max(0, place - 60)
        line = self.text[first : place + 60].replace("\n", " ")
        raise FormulaError(f"{why}\n    {line}\n    {' ' * (place - first)}^")

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)][:2]

    def accept(self, *operators: str) -> str | None:
        kind, value = self.peek()
        if kind == "operator" and value in operators:
            self.at += 1
            return value
        return None

    def expect(self, operator: str) -> None:
        if not self.accept(operator):
            self.refuse(f"expected {operator!r}, found {self.peek()[1] or 'the end'!r}")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.refuse(f"parentheses are nested more than {MAX_DEPTH} deep")
