"""Checks complete calls against the rules of their tool's schema that the grammar does not enforce.

A schema and the regexes in it are a client's program. jsonschema runs it, with a limit on the time of each request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ternvl.params import Grammar
from ternvl.sampling.schema_rules import DIALECT, subschemas

if TYPE_CHECKING:
    from ternvl.sampling.bounded_keywords import Clock, Keyword

_SECONDS = 0.25
"""CPU time for all calls of a request."""
_PRECISION = 1_000
"""Digits of a quotient. A `multipleOf` that needs more is not checked."""
_DRAFTS = {"-04": "Draft4", "-06": "Draft6", "-07": "Draft7", "/2019-09": "Draft201909", "/2020-12": "Draft202012"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a call. Both fields are paths of rules within the request."""

    broken: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    """Rules that could not be checked at all, or not within the time."""


class CallRules:
    """The rules of a request's tools that their grammar does not enforce."""

    def __init__(self, grammar: Grammar, unenforced: Sequence[str]) -> None:
        """`grammar` is of the kind "tools"; `unenforced` are the paths that compiling it has returned."""
        self._grammar, self._unenforced = grammar, frozenset(unenforced)

    @cached_property
    def _tools(self) -> dict[str, list[_Schema]]:
        """The schemas by the name of their tool, which several tools may share."""
        from ternvl.sampling.bounded_keywords import Clock

        found: dict[str, list[_Schema]] = {}
        clock = Clock(_SECONDS)
        for tool in json.loads(self._grammar.text, parse_float=Decimal)["tools"]:
            schema = _Schema(tool["path"], tool["parameters"], self._unenforced, clock)
            found.setdefault(tool["name"], []).append(schema)
        return found

    def check(self, name: str, arguments: str) -> Verdict | None:
        """Return what is known of a call of the tool `name`; None if its arguments were cut.

        A call of a name that several tools share breaks rules only if it matches the schema of none of them.
        """
        schemas = self._tools[name]
        if not any(schema.paths for schema in schemas):
            return Verdict()
        try:
            value = json.loads(arguments, parse_float=Decimal)
        except json.JSONDecodeError:
            return None
        except (ValueError, ArithmeticError, RecursionError):  # numbers with too many digits, too many levels
            return _joined([Verdict(unchecked=schema.paths) for schema in schemas])
        verdicts = [schema.check(value) for schema in schemas]
        matching = [verdict for matches, verdict in verdicts if matches]
        return matching[0] if matching else _joined([verdict for _, verdict in verdicts])


def _joined(verdicts: Sequence[Verdict]) -> Verdict:
    return Verdict(
        tuple(path for verdict in verdicts for path in verdict.broken),
        tuple(path for verdict in verdicts for path in verdict.unchecked),
    )


class _Schema:
    """The schema of one tool, and the places in it of the rules that the grammar does not enforce."""

    def __init__(self, path: str, schema: Any, unenforced: frozenset[str], clock: Clock) -> None:
        self._schema, self._clock = schema, clock
        self._rules: dict[tuple[int, str], str] = {}
        """The path of each rule by the id of its subschema and its keyword."""
        for within, node in subschemas(schema) if isinstance(schema, dict) else ():
            keys = node.get("patternProperties")
            patterns = [f"patternProperties.{key}" for key in keys] if isinstance(keys, dict) else []
            for name in (*node, *patterns):
                if (rule := f"{path}{within}.{name}") in unenforced:
                    self._rules[id(node), name] = rule
        self.paths = tuple(dict.fromkeys(self._rules.values()))

    def check(self, value: Any) -> tuple[bool, Verdict]:
        """Return whether a value matches the whole schema, and what is known of the rules."""
        matches, broken, self._skipped = True, dict[str, None](), dict[str, None]()
        try:
            validator = self._validator
            with self._clock, localcontext(Context(prec=_PRECISION)):
                for error in validator.iter_errors(value):
                    matches = False
                    broken.update(dict.fromkeys(_rules_of(error)))
        except Exception:  # a client's schema may fail in any way
            return False, Verdict(tuple(broken), tuple(path for path in self.paths if path not in broken))
        return matches, Verdict(tuple(broken), tuple(self._skipped))

    @cached_property
    def _validator(self) -> Any:
        from ternvl.sampling.bounded_keywords import Keywords, NotCheckedError

        match = DIALECT.fullmatch(str(self._schema.pop("$schema", "")))
        if _names_dialect(self._schema):  # jsonschema would take keywords without a limit
            raise NotCheckedError
        draft = _DRAFTS[match[1]] if match else "Draft202012"
        return Keywords(draft, self._clock).validator(self._schema, self._marked)

    def _marked(self, name: str, keyword: Keyword) -> Keyword:
        """Return a keyword whose errors know the rule that they are about, and which skips what cannot be checked."""
        from ternvl.sampling.bounded_keywords import is_checked

        def marked(validator: Any, rule: Any, value: Any, schema: Any) -> Iterator[Any]:
            path = self._rules.get((id(schema), name))
            if path is not None and not is_checked(name, rule):
                self._skipped[path] = None
                return
            for error in keyword(validator, rule, value, schema) or ():
                within = name if name != "patternProperties" else f"{name}.{error.schema_path[0]}"
                error.rule = self._rules.get((id(schema), within)) or getattr(error, "rule", None)
                yield error

        return marked


def _rules_of(error: Any) -> Iterator[str]:
    """Yield the rules that an error is about, those that break every branch of an `anyOf` included."""
    if error.rule is not None:
        yield error.rule
    else:
        for cause in error.context or ():
            yield from _rules_of(cause)


def _names_dialect(schema: Any) -> bool:
    """Return whether a part of a schema has a `$schema` of its own."""
    queue = [schema]
    for value in queue:
        if isinstance(value, dict):
            queue += value.values()
            if isinstance(value.get("$schema"), str):
                return True
        elif isinstance(value, list):
            queue += value
    return False
