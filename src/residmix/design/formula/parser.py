"""Formulas: text in, terms out; the text is never run as code.

A formula may come from somebody else's file, so only what this grammar lists is allowed:

    formula    = ["~"] sum                     what to remove; an intercept is always there
    sum        = product {("+" | "-") product}
    product    = cross {("*" | "/") cross}     a*b = a + b + a:b      a/b = a + a:b
    cross      = power {":" power}
    power      = primary ["**" digits]         (a + b)**2 = a + b + a:b
    primary    = "1" | name | call | "(" sum ")"
    call       = function "(" arithmetic {"," [key "="] literal} ")"
    smooth     = "s(" arithmetic {"," [key "="] literal} ["," "by" "=" (name | "C(...)")] ")"

with the functions of `.expressions`, arithmetic ``+ - * / **`` inside a call, and literals that are
numbers, strings, True, False, None, lists of them or contrasts such as ``contr.treatment("A")``. A column whose name
isn't an identifier stands in backticks. ``s(age, by=sex)`` is the term ``s(age):sex``. The algebra of terms is that of
Wilkinson and Rogers (1973), as in R.
"""

from __future__ import annotations

import ast
import re
from typing import NoReturn

from residmix.design.formula.expressions import (
    CONTRASTS,
    DEFAULT_K,
    FUNCTIONS,
    Call,
    Column,
    Contrast,
    Expression,
    Literal,
    Number,
    Operation,
    Terms,
)
from residmix.design.formula.tokens import Tokens
from residmix.errors import did_you_mean

__all__ = ["formula_columns", "parse_formula"]

# Bounds on what a short text may ask for: (a+b+...)**9 would otherwise fill any memory.
MAX_POWER = 9
MAX_TERMS, MAX_FACTORS, MAX_OPERATIONS = 5_000, 7, 200
# Of all splines of one formula together: a basis costs the square of their number.
MAX_KNOTS = 500


def parse_formula(text: str) -> Terms:
    """Return the terms of a formula, main effects before interactions, without evaluating anything.

    Raises
    ------
    FormulaError
        With the place in the text, for whatever the grammar of this module doesn't list.

    Examples
    --------
    >>> [":".join(factor.label for factor in term) for term in parse_formula("C(site) * age")]
    ['C(site)', 'age', 'C(site):age']
    """
    return _Parser(text).formula()


def formula_columns(text: str) -> tuple[str, ...]:
    """Return the data columns that a formula uses, also those inside calls, in order of appearance.

    Raises
    ------
    FormulaError
        As :func:`parse_formula` does.

    Examples
    --------
    >>> formula_columns("bs(age, df=4) + C(site):`total volume`")
    ('age', 'site', 'total volume')
    """
    terms = parse_formula(text)
    return tuple(dict.fromkeys(name for term in terms for factor in term for name in factor.columns()))


class _Parser(Tokens):
    """Recursive descent over the tokens of one formula.

    Attributes
    ----------
    by : Column or Call, optional
        The ``by=`` of the call of s() that was read last.
    """

    by: Column | Call | None = None

    # ---- terms -----------------------------------------------------------------------------------------------------

    def formula(self) -> Terms:
        self.accept("~")
        if self.peek()[0] == "end":
            self.refuse("the formula is empty; write '1' to remove the mean only")
        terms = self.sum()
        if self.peek()[0] != "end":
            self.refuse(f"cannot read {self.peek()[1]!r} here{self.instead()}")
        self.check_curves(terms)
        return tuple(sorted((term for term in terms if term), key=len))

    def instead(self) -> str:
        """Return a hint for terms without an operator between them: a sum, or a column name with spaces."""
        kind, value = self.peek()
        if value == ",":
            return "; write '+' instead of ',' between terms"
        before = self.tokens[self.at - 1] if self.at else ("end", "", 0)
        if kind == "name" and before[0] == "name":
            return f"; write backticks around a column name that has spaces: `{before[1]} {value}`"
        return ""

    def spaced(self) -> str:
        """Return a column's name such as ``Age (years)``, if one begins at this token and a call can't be meant."""
        place, end = self.tokens[self.at][2], self.tokens[self.at + 1][2]
        close = self.text.find(")", end)
        inside = self.text[end + 1 : close]
        plain = close > 0 and re.fullmatch(r"[^()`,=\"']*", inside)
        return self.text[place : close + 1] if plain and self.text[end - 1].isspace() else ""

    def sum(self) -> Terms:
        sign = self.accept("+", "-")
        terms = () if sign == "-" else self.product()
        if sign == "-":
            terms = self.without(())
        added = [terms]
        while sign := self.accept("+", "-"):
            if sign == "+":
                added.append(self.product())
            else:
                added = [self.without(_union(*added))]
        return self.bounded(_union(*added))

    def without(self, terms: Terms) -> Terms:
        here = self.at
        dropped = {frozenset(term) for term in self.product()}
        if frozenset() in dropped:
            self.at = here
            self.refuse_no_intercept()
        return tuple(term for term in terms if frozenset(term) not in dropped)

    def refuse_no_intercept(self) -> NoReturn:
        self.refuse("the intercept can't be left out; remove '0 +' or '- 1' from the formula")

    def product(self) -> Terms:
        terms = self.cross()
        while sign := self.accept("*", "/"):
            other = self.cross()
            if sign == "*":
                terms = _union(terms, other, self.crossed(terms, other))
            else:
                parent = tuple(dict.fromkeys(factor for term in terms for factor in term))
                terms = _union(terms, self.crossed((parent,), other))
        return terms

    def cross(self) -> Terms:
        terms = self.power()
        while self.accept(":"):
            terms = self.crossed(terms, self.power())
        return terms

    def crossed(self, first: Terms, second: Terms) -> Terms:
        if len(first) * len(second) > MAX_TERMS**2 // 100:
            self.refuse(f"the formula makes more than {MAX_TERMS} terms")
        terms = tuple(tuple(dict.fromkeys(a + b)) for a in first for b in second)
        if max(map(len, terms), default=0) > MAX_FACTORS:
            self.refuse(f"an interaction has at most {MAX_FACTORS} factors")
        return self.bounded(_union(terms))

    def bounded(self, terms: Terms) -> Terms:
        if len(terms) > MAX_TERMS:
            self.refuse(f"the formula makes more than {MAX_TERMS} terms")
        return terms

    def power(self) -> Terms:
        base = self.primary()
        if not self.accept("**"):
            return base
        kind, value = self.peek()
        if kind != "number" or not value.isdigit() or not 1 <= len(value) <= 3 or not 1 <= int(value) <= MAX_POWER:
            self.refuse(f"the power of a term must be a whole number from 1 to {MAX_POWER}")
        self.at += 1
        terms = base
        for _ in range(int(value) - 1):
            terms = _union(terms, self.crossed(terms, base))
        return terms

    def primary(self) -> Terms:
        kind, value = self.peek()
        if self.accept("("):
            self.enter()
            terms = self.sum()
            self.expect(")")
            self.depth -= 1
            return terms
        if kind == "number":
            if value == "0":
                self.refuse_no_intercept()
            if value != "1":
                self.refuse(f"the number {value} is not a term; write arithmetic inside I(), for example I(age / 10)")
            self.at += 1
            return ((),)
        factor = self.atom()
        if not isinstance(factor, Column | Call):
            self.refuse("a term must be a column or a function of one")
        by, self.by = self.by, None
        return ((factor,),) if by is None else ((factor, by),)

    def check_curves(self, terms: Terms) -> None:
        for term in terms:
            curves = [factor for factor in term if isinstance(factor, Call) and factor.function == "s"]
            beside = [factor for factor in term if factor not in curves]
            plain = all(isinstance(factor, Column) or factor.function == "C" for factor in beside)
            if curves and (len(curves) > 1 or len(beside) > 1 or not plain):
                written = ":".join(factor.label for factor in term)
                self.refuse(
                    f"{written} is not allowed: s() takes one variable, and by= one column, as in s(age, by=sex)",
                    0,
                )

    # ---- arithmetic inside calls -----------------------------------------------------------------------------------

    def arithmetic(self) -> Expression:
        left = self.scaled()
        while sign := self.accept("+", "-"):
            left = self.operation(sign, left, self.scaled())
        return left

    def scaled(self) -> Expression:
        left = self.signed()
        while sign := self.accept("*", "/"):
            left = self.operation(sign, left, self.signed())
        return left

    def operation(self, sign: str, left: Expression, right: Expression) -> Operation:
        self.operations += 1
        if self.operations > MAX_OPERATIONS:
            self.refuse(f"a formula has at most {MAX_OPERATIONS} arithmetic operations")
        return Operation(sign, left, right)

    def signed(self) -> Expression:
        if self.accept("-"):
            self.enter()
            value = self.signed()
            self.depth -= 1
            return Number(-value.value) if isinstance(value, Number) else Operation("-", None, value)
        base = self.atom()
        if self.accept("**"):
            self.enter()
            power = self.signed()
            self.depth -= 1
            if not isinstance(power, Number) or abs(power.value) > MAX_POWER:
                self.refuse(f"a power must be a number between -{MAX_POWER} and {MAX_POWER}")
            return Operation("**", base, power)
        return base

    def atom(self) -> Expression:
        kind, value = self.peek()
        if kind == "operator" and value == "(":
            self.at += 1
            self.enter()
            inner = self.arithmetic()
            self.expect(")")
            self.depth -= 1
            return inner
        if kind == "number":
            if float(value) > 1e300:
                self.refuse(f"the number {value} is too large")
            self.at += 1
            return Number(float(value))
        if kind == "quoted":
            self.at += 1
            return Column(value.replace("``", "`"))
        if kind != "name":
            self.refuse(f"expected a column or a call, found {value or 'the end'!r}")
        if self.peek(1) == ("operator", "("):
            return self.call(value)
        if "." in value:
            self.refuse(f"{value!r} is not allowed; if it is the name of a column, write it in backticks: `{value}`")
        if value in {"True", "False", "None"}:
            self.refuse(f"{value} is not a column")
        self.at += 1
        return Column(value)

    # ---- calls -----------------------------------------------------------------------------------------------------

    def call(self, function: str) -> Call:
        if function not in FUNCTIONS:
            if column := self.spaced():
                self.refuse(
                    f"{function}() is not a function; if it is the name of a column, write it in backticks: `{column}`"
                )
            hint = did_you_mean(function.split(".")[-1], FUNCTIONS)
            self.refuse(f"{function}() is not a function of formulas{hint}; the functions are {', '.join(FUNCTIONS)}")
        self.at += 2
        self.enter()
        argument = self.arithmetic()
        if not next(argument.columns(), None):
            self.refuse(f"{function}() needs a column as its first argument")
        if function == "C" and not isinstance(argument, Column):
            self.refuse("the first argument of C() must be a column")
        if any(call.function == "C" for call in argument.calls()):
            self.refuse(f"{function}() needs numbers; C() makes a factor")
        if any(call.function == "s" for call in argument.calls()):
            self.refuse(f"s() must be a term of its own; it can't stand inside {function}()")
        options: dict[str, Literal] = {}
        names = FUNCTIONS[function]
        while self.accept(","):
            place = self.at
            if self.peek()[0] == "name" and self.peek(1) == ("operator", "="):
                key = self.peek()[1]
                self.at += 2
            else:
                key = names[len(options)] if len(options) < len(names) else "(too many)"
            if key not in names:
                self.at = place
                takes = f"takes {', '.join(names)}" if names else "takes no options"
                self.refuse(f"{function}() has no option {key!r}{did_you_mean(key, names)}; it {takes}")
            if key in options:
                self.at = place
                self.refuse(f"{function}() has the option {key!r} twice")
            options[key] = None if key == "by" else self.literal()
            if key == "by":
                self.by = self.by_column()
        self.expect(")")
        self.depth -= 1
        options.pop("by", None)
        self.count_knots(function, options)
        return Call(function, argument, tuple((key, options[key]) for key in names if key in options))

    def by_column(self) -> Column | Call:
        factor = self.atom()
        if not isinstance(factor, Column) and not (isinstance(factor, Call) and factor.function == "C"):
            self.refuse("by= must be a column, or C() of one")
        return factor

    def count_knots(self, function: str, options: dict[str, Literal]) -> None:
        knots, df = options.get("knots"), options.get("k", DEFAULT_K) if function == "s" else options.get("df")
        self.knots += len(knots) if isinstance(knots, tuple) else 0
        self.knots += df if type(df) is int and df > 0 else 0
        if self.knots > MAX_KNOTS:
            self.refuse(
                f"the splines of a formula can have {MAX_KNOTS} knots together, and these have {self.knots}; "
                "use a smaller df or k"
            )

    def literal(self) -> Literal:
        if self.accept("["):
            items = []
            while not self.accept("]"):
                items.append(self.scalar())
                if not self.accept(","):
                    self.expect("]")
                    break
            return tuple(items)
        kind, value = self.peek()
        if kind == "name" and value.startswith("contr."):
            return self.contrast(value)
        return self.scalar()

    def scalar(self) -> str | float | bool | None:
        negative = bool(self.accept("-"))
        kind, value = self.peek()
        if kind == "number":
            self.at += 1
            number: float = ast.literal_eval(value)
            return -number if negative else number
        if negative or not (kind == "string" or (kind == "name" and value in {"True", "False", "None"})):
            self.refuse(f"an option must be a number, a string, True, False, None or a list of them, not {value!r}")
        self.at += 1
        read: str | bool | None = ast.literal_eval(value)
        return read

    def contrast(self, name: str) -> Contrast:
        if name not in CONTRASTS:
            self.refuse(f"{name} is not a contrast{did_you_mean(name, CONTRASTS)}")
        self.at += 1
        base = None
        if self.accept("("):
            if self.peek() == ("name", "base") and self.peek(1) == ("operator", "="):
                self.at += 2
            if not self.accept(")"):
                if name != "contr.treatment":
                    self.refuse(f"{name}() takes no options")
                base = self.scalar()
                self.expect(")")
        return Contrast(name, base)


def _union(*parts: Terms) -> Terms:
    """Return the terms of both without repeats; a:b and b:a are the same term."""
    found: dict[frozenset[Column | Call], tuple[Column | Call, ...]] = {}
    for part in parts:
        for term in part:
            found.setdefault(frozenset(term), term)
    return tuple(found.values())
