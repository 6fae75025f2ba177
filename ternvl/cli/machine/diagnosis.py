"""What a check of `ternvl doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "fail"]
OK: Severity = "ok"
NOTE: Severity = "note"
"""Something is slower or missing that not everybody needs."""
FAIL: Severity = "fail"
"""Nothing runs."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One fact, and what to do about it."""

    name: str
    status: Severity
    found: str
    advice: str = ""
