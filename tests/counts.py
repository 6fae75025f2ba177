"""How many cases the tests try that draw them. An environment variable asks for more than continuous integration has.

A test of a changed number has no time limit.
"""

from __future__ import annotations

import os

DEFAULTS = {
    "TERNVL_EXACT_SCHEMAS": 60,
    "TERNVL_ISOLATION": 24,
    "TERNVL_MALFORMED": 60,
    "TERNVL_PROPERTY_EXAMPLES": 80,
    "TERNVL_REPLAYS": 20,
    "TERNVL_SCHEDULES": 250,
    "TERNVL_SCHEMATHESIS_EXAMPLES": 8,
    "TERNVL_STREAM_EXAMPLES": 30,
    "TERNVL_TOOL_SETS": 3,
}


def count(variable: str) -> int:
    """Return the number of cases that a variable asks for, or its default."""
    return int(os.environ.get(variable, DEFAULTS[variable]))


def are_changed() -> bool:
    """Return whether a variable is set."""
    return not DEFAULTS.keys().isdisjoint(os.environ)
