"""The answers of docs/scale.md as tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


def ask(models: Sequence[Model], progress: Callable[[str], None]) -> dict[str, Any]:
    """Run all simulations; return their figures. The last model answers all questions, the others that of sizes."""
    main = models[-1]
    asked: dict[str, Callable[[], Rows]] = {
        "slices": lambda: questions.slices(main, PEAK),
        "affinity": lambda: questions.affinity(main, USERS, PEAK),
        "failure": lambda: questions.first_failure(main, PEAK),
        "adapters": lambda: questions.adapters(main, USERS, PEAK),
        "warm": lambda: questions.warm_pools(main, USERS / 2, PEAK // 2),
        "zero": lambda: questions.to_zero(main),
        "regions": lambda: questions.regions(main, USERS / 3, PEAK // 2),
    }
    found: dict[str, Any] = {}
    for number, model in enumerate(models):
        progress(f"sizes of {model.name}")
        found[f"sizes {number}"] = questions.sizes(model)
    for name, question in asked.items():
        progress(name)
        found[name] = question()
    return found


def sections(found: Mapping[str, Any], models: Sequence[Model], price: float) -> dict[str, str]:
    """Return the text of each section of the page, by the name of its marks. `price` is that of a core for an hour."""
    made = {f"sizes {number}": _sizes(found[f"sizes {number}"], each, price) for number, each in enumerate(models)}
    builders: dict[str, Callable[[Rows], str]] = {
        "slices": _slices, "affinity": _affinity, "failure": _failure, "adapters": _adapters, "warm": _warm,
        "zero": lambda rows: _zero(rows, models[-1], price), "regions": lambda rows: _regions(rows, models[-1], price),
    }  # fmt: skip
    return made | {name: build(found[name]) for name, build in builders.items()}


def seconds(value: float) -> str:
    """Return a time in words."""
    return f"{1000 * value:.0f} ms" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def share(value: float) -> str:
    """Return a share in percent, with a digit after the point if it is small."""
    return f"{100 * value:.1f} %" if 0 < value < 0.0995 else f"{100 * value:.0f} %"


def _sizes(rows: Rows, model: Model, price: float) -> str:
    shown = [
        (
            f"{row['users']:,}",
            row["policy"],
            f"{row['replicas']:,}",
            f"{row['flat_hours']:,.0f}",
            f"{row['hours']:,.0f}",
            f"{row['hours'] * model.cores * price:,.2f}",
            share(row["prefix"]),
            share(row["image"]),
            seconds(row["p50"]),
            seconds(row["p99"]),
            f"{row['pace']:.0f}",
        )
        for row in rows
    ]
    head = ("users a day", "router", "replicas at the peak", "replica-hours a day, always all", "as the load asks", "price a day",
            "prompt tokens found", "images found", "first token, p50", "p99", "tokens/s of an answer")  # fmt: skip
    parts = ", ".join(f"{part:g} of {users:,}" for users, part in model.parts if part < 1)
    return (
        f"For {model.name}. Service times: {model.sources}. Simulated as a fleet of its own: {parts}. Enough is what "
        f"keeps the 99th percentile of the first token within {model.bar:g} s and the median answer at "
        f"{model.pace:g} tokens/s or more in the hour of the peak. A core costs {price:g} an hour.\n\n{table(head, shown)}"
    )


def _slices(rows: Rows) -> str:
    shown = [
        (f"{row['part']:g}", f"{row['part'] * 1e7:,.0f}", row["replicas"], f"{row['requests']:,}", seconds(row["p50"]),
         seconds(row["p99"]), share(row["prefix"]), share(row["image"]), f"{row['pace']:.0f}")
        for row in rows
    ]  # fmt: skip
    head = ("part of 10 million", "users a day", "replicas", "requests counted", "first token, p50", "p99", "prompt tokens found",
            "images found", "tokens/s of an answer")  # fmt: skip
    return table(head, shown)


def _affinity(rows: Rows) -> str:
    shown = [
        (row["case"], row["policy"], share(row["prefix"]), _images(row), seconds(row["p50"]), seconds(row["p99"]),
         f"{row['pace']:.0f}")
        for row in rows
    ]  # fmt: skip
    return table(
        ("people", "router", "prompt tokens found", "images found", "first token, p50", "p99", "tokens/s of an answer"), shown
    )


def _images(row: Row) -> str:
    return "-" if row["case"].startswith("no images") else share(row["image"])


def _failure(rows: Rows) -> str:
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(row["case"], []).append(row)
    shown = []
    for case, some in cases.items():
        light = some[0]["p99"]
        checks: tuple[Callable[[Row], bool], ...] = (
            lambda row, light=light: row["p99"] > 2 * light,  # type: ignore[misc]
            lambda row: row["pace"] < 20,
            lambda row: row["kv"] > 0.95,
            lambda row: row["refused"] > questions.REFUSED,
        )
        whole = next(row for row in some if row["load"] == 1.0)
        shown.append((case, f"{whole['users']:,.0f}", seconds(light), *(_first(some, check) for check in checks)))
    head = ("people", "users a day at load 1", "p99 of the first token at 0.3", "p99 is doubled", "answers fall below 20 tokens/s",
            "a KV cache is full", "requests are refused")  # fmt: skip
    return table(head, shown)


def _first(rows: Rows, fails: Callable[[Row], bool]) -> str:
    return next((f"{row['load']:g}" for row in rows if fails(row)), f"above {rows[-1]['load']:g}")


def _adapters(rows: Rows) -> str:
    shown = [
        (row["most"], row["policy"], share(row["loads"]), share(row["refused"]), seconds(row["p50"]), seconds(row["p99"]))
        for row in rows
    ]
    return table(("`--max-loras`", "router", "requests that load an adapter", "refused", "first token, p50", "p99"), shown)


def _warm(rows: Rows) -> str:
    shown = [
        (row["what"], seconds(row["cold"]), row["target"], row["spare"], f"{row['hours']:.1f}", row["most"], share(row["within"]),
         seconds(row["p99"]), f"{row['pace']:.0f}")
        for row in rows
    ]  # fmt: skip
    head = ("what must start", "cold start", "requests per replica", "spare replicas", "replica-hours an hour", "most replicas", "first token in time",
            "first token, p99", "tokens/s of an answer")  # fmt: skip
    return table(head, shown)


def _zero(rows: Rows, model: Model, price: float) -> str:
    shown = [
        (row["policy"], "-" if row["policy"].startswith("always") else seconds(row["cold"]), row["starts"], share(row["share"]),
         f"{row['hours']:.1f}", f"{row['hours'] * model.cores * price:.2f}", seconds(row["p50"]), seconds(row["p99"]))
        for row in rows
    ]  # fmt: skip
    head = ("the last replica stops after", "cold start", "starts a day", "requests that wait for it", "replica-hours a day",
            "price a day", "first token, p50", "p99")  # fmt: skip
    return table(head, shown)


def _regions(rows: Rows, model: Model, price: float) -> str:
    shown = [
        (row["case"], row["most"], f"{row['hours']:.0f}", f"{row['hours'] * model.cores * price:.2f}", share(row["prefix"]),
         seconds(row["p50"]), seconds(row["p99"]))
        for row in rows
    ]  # fmt: skip
    head = ("servers", "replicas, sum of each region's most", "replica-hours a day", "price a day", "prompt tokens found",
            "first token, p50", "p99")  # fmt: skip
    return table(head, shown)


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
