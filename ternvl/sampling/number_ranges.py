"""Regular expressions for ranges of decimal numbers of any size.

A number is written without an exponent, as llguidance writes numbers that have bounds. Ranges are terminals of a Lark
grammar: `/regex/`, or two of these joined by `&`.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from math import ceil, floor

MAX_DIGITS = 4_300
"""The most digits of a bound, which is Python's limit for reading an integer."""
MAX_RANGE_DIGITS = 500
"""The most digits of a bound beside another bound. llguidance's limits do not allow many more."""

_CHUNK = 64
"""Digits that are compared at one level of parentheses, of which a regular expression may have 250."""
_INTEGER = "(?:0|[1-9][0-9]*)"
_FRACTION = r"(?:\.[0-9]+)?"

Bound = tuple[Decimal, bool]
"""A bound, and whether it is exclusive."""


def integers(low: Bound | None, high: Bound | None) -> str | None:
    """Return the terminal of the integers within bounds, or None if there are none."""
    least = None if low is None else floor(low[0]) + 1 if low[1] else ceil(low[0])
    most = None if high is None else ceil(high[0]) - 1 if high[1] else floor(high[0])
    if least is not None and most is not None and least > most:
        return None
    above = None if least is None else _integers_from(least)
    below = None if most is None else _integers_to(most)
    return _terminal(above, below, f"-?{_INTEGER}")


def numbers(low: Bound | None, high: Bound | None) -> str | None:
    """Return the terminal of the decimal numbers within bounds, or None if there are none."""
    if low is not None and high is not None and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
        return None
    above = None if low is None else _numbers_from(*low)
    below = None if high is None else _numbers_to(*high)
    return _terminal(above, below, f"-?{_INTEGER}{_FRACTION}")


def _terminal(above: str | None, below: str | None, free: str) -> str:
    return " & ".join(f"/{regex}/" for regex in (above, below) if regex is not None) or f"/{free}/"


def _integers_from(low: int) -> str:
    return _at_least(str(low)) if low >= 0 else f"(?:{_INTEGER}|-{_at_most(str(-low))})"


def _integers_to(high: int) -> str:
    return f"(?:-{_INTEGER}|{_at_most(str(high))})" if high >= 0 else f"-{_at_least(str(-high))}"


def _numbers_from(low: Decimal, strict: bool) -> str:
    if low >= 0:
        return _above(low, strict)
    return f"(?:{_INTEGER}{_FRACTION}|-{_below(low.copy_negate(), strict)})"


def _numbers_to(high: Decimal, strict: bool) -> str:
    if high < 0 or (high == 0 and strict):
        return f"-{_above(high.copy_abs(), strict)}"
    return f"(?:-{_INTEGER}{_FRACTION}|{_below(high, strict)})"


def _above(number: Decimal, strict: bool) -> str:
    """Numbers of at least `number`, which is not negative; with `strict`, larger ones."""
    whole, fraction = _split(number)
    larger = _at_least(str(int(whole) + 1)) + _FRACTION
    if fraction:
        same = rf"{whole}\.{_fraction_above(fraction, strict)}"
    else:
        same = rf"{whole}\.[0-9]*[1-9][0-9]*" if strict else whole + _FRACTION
    return f"(?:{larger}|{same})"


def _below(number: Decimal, strict: bool) -> str:
    """Numbers from 0 to `number`, which is not 0 if `strict`; with `strict`, smaller ones."""
    whole, fraction = _split(number)
    parts = [] if whole == "0" else [_at_most(str(int(whole) - 1)) + _FRACTION]
    if fraction:
        parts.append(rf"{whole}(?:\.{_fraction_below(fraction, strict)})?")
    elif not strict:
        parts.append(rf"{whole}(?:\.0+)?")
    return f"(?:{'|'.join(parts)})"


def _split(number: Decimal) -> tuple[str, str]:
    """The digits before and after the point, without zeros that change nothing."""
    whole, _, fraction = f"{number.copy_abs():f}".partition(".")
    return whole, fraction.rstrip("0")


def _at_least(digits: str) -> str:
    """Integers of at least `digits`, which are not negative."""
    return f"(?:{_of_size(digits, up=True, is_first=True)}|[1-9][0-9]{{{len(digits)},}})"


def _at_most(digits: str) -> str:
    """Integers from 0 to `digits`."""
    shorter = f"|[1-9][0-9]{{0,{len(digits) - 2}}}" if len(digits) > 1 else ""
    return f"(?:0|{_of_size(digits, up=False, is_first=True)}{shorter})"


def _of_size(digits: str, *, up: bool, is_first: bool) -> str:
    """Texts of as many digits that are at least (`up`) or at most `digits`; the first of all digits is not 0."""

    def other(index: int, digit: int) -> str:
        least = 1 if is_first and index == 0 else 0
        group = _digits(digit + 1, 9) if up else _digits(least, digit - 1)
        return group and group + _any(len(digits) - index - 1)

    return _chunked(digits, other, lambda rest: _of_size(rest, up=up, is_first=False) if rest else "")


def _fraction_above(digits: str, strict: bool) -> str:
    def other(_: int, digit: int) -> str:
        group = _digits(digit + 1, 9)
        return group and group + "[0-9]*"

    def end(rest: str) -> str:
        return _fraction_above(rest, strict) if rest else "[0-9]*[1-9][0-9]*" if strict else "[0-9]*"

    return _chunked(digits, other, end)


def _fraction_below(digits: str, strict: bool, *, is_first: bool = True) -> str:
    """Digits after a point of at most `digits`, which do not end in 0. A text that ends earlier is smaller."""
    chunk, rest = digits[:_CHUNK], digits[_CHUNK:]
    parts = [chunk[:index] for index in range(1 if is_first else 0, len(chunk))]
    parts += [chunk[:index] + _digits(0, int(digit) - 1) + "[0-9]*" for index, digit in enumerate(chunk) if digit > "0"]
    if rest:
        parts.append(chunk + _fraction_below(rest, strict, is_first=False))
    elif not strict:
        parts.append(chunk + "0*")
    return f"(?:{'|'.join(parts)})"


def _chunked(digits: str, other: Callable[[int, int], str], end: Callable[[str], str]) -> str:
    """Texts that begin with some of `digits` and continue with `other`, or begin with all and continue with `end`."""
    chunk = digits[:_CHUNK]
    continued = ((chunk[:index], other(index, int(digit))) for index, digit in enumerate(chunk))
    parts = [chunk + end(digits[_CHUNK:])] + [begin + more for begin, more in continued if more]
    return f"(?:{'|'.join(parts)})"


def _digits(low: int, high: int) -> str:
    return f"[{low}-{high}]" if low <= high else ""


def _any(count: int) -> str:
    return f"[0-9]{{{count}}}" if count else ""
