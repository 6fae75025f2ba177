"""The calls of one choice, which are checked against the rules that its grammar does not enforce once it has ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ternvl.output.tool_calls import ToolCallDelta
from ternvl.prompt.messages import ToolCall
from ternvl.sampling.call_rules import CallRules

_MAX_LOGGED = 1_000
"""Characters of a list in the log."""


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule of a tool's schema that a call breaks."""

    call_id: str
    path: str
    """Of the rule in the request, such as "tools[0].function.parameters.properties.tags.uniqueItems"."""

    def __str__(self) -> str:
        return f"{self.call_id}:{self.path}"


class CallChecks:
    """Collects the calls of one choice and checks them."""

    def __init__(self, rules: CallRules) -> None:
        self._rules = rules
        self._calls: list[ToolCall] = []

    def add(self, pieces: Iterable[ToolCallDelta]) -> None:
        """Add pieces of calls in their order."""
        for piece in pieces:
            append_piece(self._calls, piece)

    def result(self) -> tuple[tuple[BrokenRule, ...], tuple[str, ...]]:
        """Return the rules that the calls break, and the paths of those that could not be checked.

        Calls that were cut are left out. It takes up to a second.
        """
        broken, unchecked = list[BrokenRule](), dict[str, None]()
        for call in self._calls:
            verdict = self._rules.check(call.name, call.arguments)
            if verdict is not None:
                broken += [BrokenRule(call.id, path) for path in verdict.broken]
                unchecked |= dict.fromkeys(verdict.unchecked)
        return tuple(broken), tuple(unchecked)


def append_piece(calls: list[ToolCall], piece: ToolCallDelta) -> None:
    """Add a piece of a call to the calls of a choice: the piece begins a new call, or continues the last one."""
    if piece.name is not None:
        calls.append(ToolCall(piece.id or "", piece.name, piece.arguments))
    else:
        calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.arguments)


def in_words(broken: Sequence[BrokenRule], unchecked: Sequence[str]) -> str:
    """Return a line for the log, in which names of the client's are quoted and long lists are cut."""
    known = f"Calls break rules of their schemas: {_listed(broken)}. " if broken else ""
    return known + (f"Rules of schemas that could not be checked: {_listed(unchecked)}. " if unchecked else "")


def _listed(values: Sequence[object]) -> str:
    text = ", ".join(ascii(str(value)) for value in values)
    return text if len(text) <= _MAX_LOGGED else text[:_MAX_LOGGED] + "..."
