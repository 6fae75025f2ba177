"""The answers of docs/scale.md as tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.live.chart import Panel, draw
from benchmarks.live.page import table
from benchmarks.scale import questions
from benchmarks.scale.models import Model
from benchmarks.scale.questions import Row

USERS, PEAK = 100_000, 10
"""Of the simulations that ask other questions than how many replicas: people a day, and replicas."""
Rows = Sequence[Row]


def ask(models: Sequence[Model], progress: Callable[[str], None], only: Sequence[str] = ()) -> dict[str, Any]:
    """Run the simulations of all questions or of some; return their figures.

    The last model answers all questions, the others that of sizes.
    """
    main = models[-1]
    asked: dict[str, Callable[[], Rows]] = {
        **{f"sizes {number}": partial(questions.sizes, model) for number, model in enumerate(models)},
        "slices": lambda: questions.slices(main, PEAK),
        "affinity": lambda: questions.affinity(main, USERS, PEAK),
        "failure": lambda: questions.first_failure(main, PEAK),
        "adapters": lambda: questions.adapters(main, USERS, PEAK),
        "warm": lambda: questions.warm_pools(main, USERS / 2, PEAK // 2),
        "zero": lambda: questions.to_zero(main),
        "regions": lambda: questions.regions(main, USERS / 3, PEAK // 2),
    }
    found: dict[str, Any] = {}
    for name, question in asked.items():
        if not only or name in only:
            progress(name)
            found[name] = question()
    return found


def seconds(value: float) -> str:
    """Return a time in words."""
    return f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def share(value: float) -> str:
    """Return a share in percent, with a digit after the point if it is small or nearly all."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return f"{100 * value:.1f} %" if 0 < value < 0.0995 or 0.99 <= value < 1 else f"{100 * value:.0f} %"


def _is_text(row: Row) -> bool:
    return str(row.get("case", "")).startswith("no images")


COLUMNS: dict[str, tuple[str, Callable[[Row], object]]] = {
    "users": ("users a day", lambda row: f"{row['users']:,.0f}"),
    "policy": ("router", lambda row: row["policy"]),
    "replicas": ("replicas", lambda row: f"{row['replicas']:,}"),
    "flat": ("replica-hours a day, always all", lambda row: f"{row['flat_hours']:,.0f}"),
    "hours": ("replica-hours a day", lambda row: f"{row['hours']:,.0f}"),
    "hourly": ("replica-hours an hour", lambda row: f"{row['hours']:.1f}"),
    "prefix": ("prompt tokens found", lambda row: share(row["prefix"])),
    "image": ("images found", lambda row: "-" if _is_text(row) else share(row["image"])),
    "p50": ("first token, p50", lambda row: seconds(row["p50"])),
    "p99": ("first token, p99", lambda row: seconds(row["p99"])),
    "pace": ("tokens/s of an answer", lambda row: f"{row['pace']:.0f}"),
    "part": ("part of 10 million", lambda row: f"{row['part']:g}"),
    "requests": ("requests counted", lambda row: f"{row['requests']:,}"),
    "people": ("people", lambda row: row["case"]),
    "servers": ("servers", lambda row: row["case"]),
    "max_loras": ("`--max-loras`", lambda row: row["most"]),
    "loads": ("requests that load an adapter", lambda row: share(row["loads"])),
    "refused": ("refused", lambda row: share(row["refused"])),
    "what": ("what must start", lambda row: row["what"]),
    "cold": ("cold start", lambda row: seconds(row["cold"])),
    "target": ("requests per replica", lambda row: row["target"]),
    "spare": ("spare replicas", lambda row: row["spare"]),
    "most": ("most replicas", lambda row: row["most"]),
    "within": ("first token in time", lambda row: share(row["within"])),
    "after": ("the last replica stops after", lambda row: row["policy"]),
    "starts": ("starts a day", lambda row: row["starts"]),
    "waits": ("requests that wait for a start", lambda row: share(row["share"])),
}


def shown(rows: Rows, names: str, model: Model | None = None, price: float = 0.0) -> str:
    """Return a table of columns by their names; "price" is that of the replica-hours."""
    columns = dict(COLUMNS)
    if model is not None:
        columns["price"] = ("price a day", lambda row: f"{row['hours'] * model.cores * price:,.2f}")
    chosen = [columns[name] for name in names.split()]
    return table([head for head, _ in chosen], [[cell(row) for _, cell in chosen] for row in rows])


FIELDS = {
    "slices": "part users replicas requests p50 p99 prefix image pace",
    "affinity": "people policy prefix image p50 p99 pace",
    "adapters": "max_loras policy loads refused p50 p99",
    "warm": "what cold target spare hourly most within p99 pace",
    "zero": "after cold starts waits hours price p50 p99",
    "regions": "servers most hours price prefix p50 p99",
}


def sections(found: Mapping[str, Any], models: Sequence[Model], price: float) -> dict[str, str]:
    """Return the text of each section of the page, by the name of its marks. `price` is that of a core for an hour."""
    made = {f"sizes {number}": _sizes(found[f"sizes {number}"], each, price) for number, each in enumerate(models)}
    made |= {name: shown(found[name], fields, models[-1], price) for name, fields in FIELDS.items()}
    return {**made, "failure": _failure(found["failure"])}


def _sizes(rows: Rows, model: Model, price: float) -> str:
    parts = ", ".join(f"{part:g} of {users:,}" for users, part in model.parts if part < 1)
    fields = "users policy replicas flat hours price prefix image p50 p99 pace"
    return (
        f"For {model.name}. Service times: {model.sources}. Simulated as a fleet of its own: {parts}. Enough is what "
        f"keeps the 99th percentile of the first token within {model.bar:g} s and the median answer at "
        f"{model.pace:g} tokens/s or more in the hour of the peak. A core costs {price:g} an hour.\n\n"
        f"{shown(rows, fields, model, price)}"
    )


def _failure(rows: Rows) -> str:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    lines = []
    for case, some in cases.items():
        light = some[0]["p99"]
        whole = next(row for row in some if row["load"] == 1.0)
        fails = (
            _first(some, lambda row, light=light: row["p99"] > 2 * light),  # type: ignore[misc]
            _first(some, lambda row: row["pace"] < 20),
            _first(some, lambda row: row["kv"] > 0.95),
            _first(some, lambda row: row["refused"] > questions.REFUSED),
        )
        lines.append((case, f"{whole['users']:,.0f}", seconds(light), *fails))
    head = ("people", "users a day at load 1", "first token, p99, at 0.3", "it is doubled", "answers below 20 a second",
            "a KV cache is full", "requests are refused")  # fmt: skip
    return table(head, lines)


def _first(rows: Rows, fails: Callable[[Row], bool]) -> str:
    return next((f"{row['load']:g}" for row in rows if fails(row)), f"above {rows[-1]['load']:g}")


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw what changes with the load, with the adapters in memory, and with the spare replicas."""
    failure, held = found["failure"], found["adapters"]
    cases = list(dict.fromkeys(row["case"] for row in failure))
    names = dict(zip(cases, ("people as above", "texts", "long texts", "7 tiles"), strict=True))

    def line(rows: Rows, key: str, value: str, name: str, along: str) -> list[tuple[float, float]]:
        return [(row[along], row[value]) for row in rows if row[key] == name]

    policies = ("least loaded", "affinity")
    panels = [
        Panel(
            "p99 of the first token over the load, s, up to 60",
            {names[case]: [(x, min(y, 60.0)) for x, y in line(failure, "case", "p99", case, "load")] for case in cases},
            unit="x",
        ),
        Panel(
            "Tokens/s of an answer over the load",
            {names[case]: line(failure, "case", "pace", case, "load") for case in cases},
            20,
            unit="x",
        ),
        Panel(
            "Requests that load an adapter, %, over --max-loras",
            {name: [(x, 100 * y) for x, y in line(held, "policy", "loads", name, "most")] for name in policies},
            unit="",
        ),
    ]
    draw(panels, path)
