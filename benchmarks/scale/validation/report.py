"""The figures of a validation as a page shows them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.live.page import table
from benchmarks.scale.validation.compare import FIGURES, LATE, rows

BOUND = 0.15
"""How far a prediction may be from the measurement."""


def processor() -> str:
    """Return the name of this machine's processor, and how many there are."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} CPUs" if names else platform.machine()


def missed(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows whose prediction is too far from the measurement, in words."""
    return [
        f"{each['policy']} at {each['load']:.0%}, {each['figure']}: {each['ratio']:.2f}"
        for each in found
        if abs(each["ratio"] - 1) > BOUND
    ]


def validation(found: dict[str, Any]) -> str:
    """Return the section of the page."""
    made = rows(found)
    shown = [
        (
            "more than it can carry" if each["load"] == LATE else f"{each['load']:.0%}",
            each["policy"],
            each["figure"],
            _value(each, "measured"),
            _value(each, "predicted"),
            f"{each['ratio']:.2f}" if abs(each["ratio"] - 1) <= BOUND else f"**{each['ratio']:.2f}**",
            _value(each, "undisturbed"),
        )
        for each in made
    ]
    head = ("load", "router", "figure", "measured", "predicted", "ratio", "on processors of its own")
    requests = sum(run["num_requests"] for run in found["runs"])
    shares = [run["share"] for run in found["runs"]]
    measured, predicted = (sum(run["hits"][kind] for run in found["runs"]) for kind in range(2))
    wrong = missed(made)
    verdict = f"{len(wrong)} of {len(made)} miss 15 %" if wrong else f"All {len(made)} figures are within 15 %"
    return (
        f"{found['date']}, {found['processor']}: two servers of the embedded model, {found['threads']} thread each, "
        f"{requests} requests, medians of {found['rounds']} rounds, {found['seconds']} s in all. Capacity "
        f"{found['capacity']:.1f} requests/s. Load average at the end {found['load_average']:.1f}; the engines got "
        f"{min(shares):.0%} to {max(shares):.0%} of the processor time that they wanted. {verdict}.\n\n"
        f"{table(head, shown)}\n\n"
        f"Tokens found in the KV caches: {measured:,} measured, {predicted:,} predicted. Single figures of single runs "
        f"within 15 %: {_by_share(found['runs'])}."
    )


SHARES = ((0.5, 1.01, "at least half"), (0.15, 0.5, "15 to 50 %"), (0.0, 0.15, "less than 15 %"))
"""Groups of runs by the share of a processor that the engines got."""


def _by_share(runs: Sequence[dict[str, Any]]) -> str:
    """Return how many figures are right, by the share of a processor that the engines got."""
    parts = []
    for low, high, words in SHARES:
        some = [run for run in runs if low <= run["share"] < high]
        ratios = [run["predicted"][name] / run["measured"][name] for run in some for name in FIGURES]
        if ratios:
            good = sum(abs(each - 1) <= BOUND for each in ratios)
            parts.append(f"{good} of {len(ratios)} where the engines got {words} of their time")
    return ", ".join(parts)


def _value(row: dict[str, Any], kind: str) -> str:
    return f"{row[kind]:.1f}" if row["figure"] == "answers/s" else f"{1000 * row[kind]:.0f} ms"
