"""jsonschema's keywords with a limit on their time: every keyword looks at a clock, and regexes have timeouts.

It is imported when a call is to be checked, because jsonschema and regex take 0.2 s to import.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from time import thread_time
from typing import Any

import regex
from jsonschema import FormatChecker, ValidationError, validators
from referencing import Registry

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]
"""A function of the validator, the keyword's value, the instance and the subschema. It yields what is wrong."""

_UNBOUNDED = ("unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef")
"""Keywords whose evaluation in jsonschema has no bound that a clock could enforce."""
_FORMATS = ("json-pointer", "relative-json-pointer", "idn-email", "idn-hostname")

_POINTER = r"(?:/(?:[^~/]|~[01])*)*"  # RFC 6901
_POINTERS = {"json-pointer": _POINTER, "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})"}

_MAX_REGEX = 2_000
_SEARCH_SECONDS = 0.05
_ESCAPE = r"\\[pP]\{\w+(?:=\w+)?\}|\\."
_ATOM = re.compile(rf"(?s){_ESCAPE}|\[(?:\\.|[^\]\\])*\]|\(\?(?::|<?[=!]|<\w+>)|\{{\d+(?:,\d*)?\}}|\(\?|.")
_ATOM_IN_CLASS = re.compile(rf"(?s){_ESCAPE}|.")
_WRITTEN = {"$": r"\Z", ".": r"[^\n\r\u2028\u2029]"}
_WRITTEN |= {r"\d": "[0-9]", r"\D": "[^0-9]", r"\w": "[A-Za-z0-9_]", r"\W": "[^A-Za-z0-9_]"}
_WRITTEN_IN_CLASS = {"[": r"\[", r"\d": "0-9", r"\w": "A-Za-z0-9_"}
_OTHER_MEANING = re.compile(r"\[\^?\]|\(\?|\{|\\[aceg-moqy-zAC-CE-OQRT-VX-Z](?s:.*)")
"""Atoms that ECMA 262 does not have or that `regex` reads in another way."""


class NotCheckedError(Exception):
    """A schema was not evaluated to its end."""


class Clock:
    """The CPU time that may still be spent, counted within `with` blocks."""

    def __init__(self, seconds: float) -> None:
        self._left, self._end = seconds, 0.0

    def __enter__(self) -> None:
        self._end = thread_time() + self._left

    def __exit__(self, *_: object) -> None:
        self._left = self._end - thread_time()

    def check(self) -> None:
        """Raise NotCheckedError if the time is spent."""
        if thread_time() > self._end:
            raise NotCheckedError


def is_checked(name: str, rule: Any) -> bool:
    """Return whether a keyword with this value is checked: a reference, only within the schema; a format, if known."""
    if name == "$ref":
        return isinstance(rule, str) and rule.startswith("#")
    return name not in _UNBOUNDED and (name != "format" or rule in _FORMATS)


class Keywords:
    """The keywords of one draft of JSON Schema."""

    def __init__(self, draft: str, clock: Clock) -> None:
        """`draft` is the name of one of jsonschema's validators, such as "Draft202012"."""
        self._draft = getattr(validators, f"{draft}Validator")
        self._clock = clock
        self._regexes: dict[str, Any] = {}
        self.all: dict[str, Keyword] = {
            "dependencies": validators.Draft7Validator.VALIDATORS["dependencies"],
            **self._draft.VALIDATORS,
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional_properties,
            "uniqueItems": _unique_items,
            "format": _format,
        }
        """The function of each keyword by its name."""

    def validator(self, schema: Any, wrap: Callable[[str, Keyword], Keyword]) -> Any:
        """Return jsonschema's validator of a schema, in which every keyword is `wrap(name, keyword)`."""
        types = self._draft.TYPE_CHECKER.redefine("integer", _is_integer)
        wrapped = {name: wrap(name, self._timed(name, keyword)) for name, keyword in self.all.items()}
        kind = validators.extend(self._draft, wrapped, type_checker=types)
        return kind(schema, registry=Registry())  # an empty registry fetches nothing

    def _timed(self, name: str, keyword: Keyword) -> Keyword:
        def timed(validator: Any, rule: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
            self._clock.check()
            if name in _UNBOUNDED:
                raise NotCheckedError
            yield from keyword(validator, rule, value, schema) or ()

        return timed

    def _matches(self, pattern: str, text: str) -> bool:
        if pattern not in self._regexes:
            self._regexes[pattern] = compile_regex(pattern)
        self._clock.check()
        return self._regexes[pattern].search(text, timeout=_SEARCH_SECONDS, concurrent=True) is not None

    def _pattern(self, validator: Any, pattern: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not self._matches(pattern, value):
            yield ValidationError("does not match")

    def _pattern_properties(self, validator: Any, patterns: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        for pattern, subschema in patterns.items() if isinstance(value, dict) else ():
            for key in value:
                if self._matches(pattern, key):
                    yield from validator.descend(value[key], subschema, path=key, schema_path=pattern)

    def _additional_properties(
        self, validator: Any, subschema: Any, value: Any, schema: Any
    ) -> Iterator[ValidationError]:
        listed, patterns = schema.get("properties", ()), schema.get("patternProperties", ())
        for key in value if isinstance(value, dict) else ():
            if key not in listed and not any(self._matches(pattern, key) for pattern in patterns):
                yield from validator.descend(value[key], subschema, path=key)


def compile_regex(pattern: str) -> Any:
    """Return a regex of ECMA 262, the syntax that JSON Schema names, compiled by the package `regex`.

    Raises NotCheckedError for a regex that is too long or that would mean something else to `regex`, and regex.error.
    """
    if len(pattern) > _MAX_REGEX:
        raise NotCheckedError
    return regex.compile("".join(map(_atom, _ATOM.findall(pattern))))


def _atom(atom: str) -> str:
    if _OTHER_MEANING.fullmatch(atom):
        raise NotCheckedError
    if not atom.startswith("[") or atom == "[":
        return _WRITTEN.get(atom, atom)
    inner = _ATOM_IN_CLASS.findall(atom[1:-1])
    if any(each in (r"\D", r"\W") or (each != "{" and _OTHER_MEANING.fullmatch(each)) for each in inner):
        raise NotCheckedError
    return "[" + "".join(_WRITTEN_IN_CLASS.get(each, each) for each in inner) + "]"


def _unique_items(validator: Any, rule: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if rule and isinstance(value, list) and len(set(map(_hashable, value))) < len(value):
        yield ValidationError("has items that are equal")


def _hashable(value: Any) -> Any:
    """Return a value that equals another one if both are the same in JSON, where 1.0 is 1 but true is not."""
    match value:
        case list():
            return "array", tuple(map(_hashable, value))
        case dict():
            return "object", frozenset((key, _hashable(item)) for key, item in value.items())
        case bool() | str():
            return type(value).__name__, value
    return value


def _format(validator: Any, form: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(value, str) or form not in _FORMATS:
        return
    if form in _POINTERS:
        holds = re.fullmatch(_POINTERS[form], value) is not None
    else:
        holds = FormatChecker([form]).conforms(value, form)
    if not holds:
        yield ValidationError("does not have the format")


def _is_integer(_: Any, value: Any) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, int) and not isinstance(value, bool)
