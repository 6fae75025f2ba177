"""A result as tables in Markdown: all of it, and the few lines that the README shows. A result is the JSON of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ternvl.bench import Limits

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
NOTHING = "Not measured yet: `ternvl bench peers` writes this section."
PAGE = "benchmarks/results/peers.md"
Result = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A metric of a workload, and its target.

    The target is the largest (or with `higher`, the smallest) allowed ratio of our value to the best peer's value. With
    `absolute`, it applies to our value itself.
    """

    title: str
    workload: str
    metric: str
    target: float
    ours: str = "ternvl-int8"
    theirs: str = "openvino-int8"
    higher: bool = False
    absolute: bool = False
    only: tuple[str, ...] = ()
    """The contestants that the line is restricted to; empty for all."""

    @property
    def target_text(self) -> str:
        bound = shown(self.target, self.metric) if self.absolute else f"{self.target:g} x"
        return f"{'≥' if self.higher else '≤'} {bound}"


TTFT, DECODE, TOTAL = "time to first token", "decode", "all streams"
COLUMNS = (
    "ternvl-int8",
    "ternvl-int4",
    "ternvl-none",
    "openvino-int8",
    "openvino-int4",
    "llamacpp-q8_0",
    "llamacpp-q4_0",
    "transformers-fp32",
    "transformers-bf16",
)
FOUR_BITS = ("ternvl-int4", "openvino-int4", "llamacpp-q4_0")
OTHERS = tuple(name for name in COLUMNS if name not in FOUR_BITS)
LINES = (
    Line("one 448x448 tile, time to first token", "tile", TTFT, 0.40),
    Line("1000x747 image (13 tiles), time to first token", "tiles", TTFT, 0.40),
    Line("950-token text, time to first token", "text", TTFT, 0.50),
    Line("decode, one stream, int8", "decode", DECODE, 1.25, higher=True, only=OTHERS),
    Line("decode, one stream, int4", "decode", DECODE, 1.7, "ternvl-int4", "openvino-int4", True, only=FOUR_BITS),
    Line("8 streams, text", "streams", TOTAL, 2.2, higher=True),
    Line("8 streams, an image each", "image-streams", TOTAL, 2.5, higher=True),
    Line("long prompt, time to first token", "long", TTFT, 0.40),
    Line("long prompt, decode after it", "long", DECODE, 2.0, higher=True),
    Line("long prompt, peak memory", "long", "peak memory", 0.7),
    Line("start to ready", "start", "start to ready", 2.0, absolute=True),
    Line("start to first answer", "start", "start to first answer", 2.0, absolute=True),
    Line("resident memory after an answer", "start", "resident memory", 1.25e9, absolute=True),
)

SUMMARY = tuple(line for line in LINES if line.workload != "long" and line.metric != "start to ready")
"""The lines that the README shows."""


def median(result: Result, workload: str, contestant: str, metric: str) -> float | None:
    """Return the median of a metric, or None if it was not measured."""
    row = result["workloads"].get(workload, {}).get("rows", {}).get(contestant)
    value = None if row is None else row["median"].get(metric)
    return None if value is None else float(value)


def ratio(result: Result, line: Line) -> float | None:
    """Return our value divided by the best peer's."""
    ours = median(result, line.workload, line.ours, line.metric)
    theirs = median(result, line.workload, line.theirs, line.metric)
    return ours / theirs if ours and theirs else None


def shown(value: float | None, metric: str) -> str:
    """Format a value with its unit."""
    if value is None:
        return "-"
    match metric:
        case "decode" | "all streams":
            return f"{value:.1f} tok/s"
        case "peak memory" | "resident memory":
            return f"{value / 1e9:.2f} GB"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def with_spread(result: Result, workload: str, contestant: str, metric: str) -> str:
    """Format a median with its unit, and half of the range of all values as a share of it."""
    middle = median(result, workload, contestant, metric)
    text = shown(middle, metric)
    if not middle:
        return text
    values = result["workloads"][workload]["rows"][contestant].get("values", {}).get(metric, [])
    return f"{text} ±{(max(values) - min(values)) / 2 / middle:.0%}" if len(values) > 1 else text


def shown_ratio(result: Result, line: Line) -> str:
    """Format the ratio, in bold if the target is reached."""
    reached = ratio(result, line)
    if reached is None:
        return "-"
    judged = median(result, line.workload, line.ours, line.metric) if line.absolute else reached
    assert judged is not None
    good = judged >= line.target if line.higher else judged <= line.target
    text = f"{reached:.2f} x"
    return f"**{text}**" if good else text


def table(result: Result) -> str:
    """Return the Markdown table, with a column for each contestant that has a value."""
    titles = result["contestants"]
    lines = [line for line in LINES if line.workload in result["workloads"]]
    columns = [
        name for name in COLUMNS if any(median(result, line.workload, name, line.metric) is not None for line in lines)
    ]
    rows = [
        ["", "ternvl : OpenVINO", "target", *(titles[name] for name in columns)],
        ["---"] * (3 + len(columns)),
    ]
    for line in lines:
        there = [name if name in (line.only or COLUMNS) else "" for name in columns]
        values = [with_spread(result, line.workload, name, line.metric) for name in there]
        rows.append([line.title, shown_ratio(result, line), line.target_text, *values])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def beside(result: Result) -> str:
    """Return a table of what is left of the speed alone beside busy neighbours; nothing if there were none."""
    titles, rows = result["contestants"], []
    names = [name for name in COLUMNS if any(name in each["rows"] for each in result["workloads"].values())]
    for workload in result["workloads"]:
        alone, plus, number = workload.partition("+")
        if plus:
            line = next(line for line in LINES if line.workload == alone)
            found = [_left(result, line, workload, name) for name in names]
            rows.append([line.title.removesuffix(", int8"), number, *found])
    if not rows:
        return ""
    head = [["", "busy neighbours", *(titles[name] for name in names)], ["---"] * (2 + len(names))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in head + rows)


def _left(result: Result, line: Line, workload: str, contestant: str) -> str:
    alone, now = (median(result, name, contestant, line.metric) for name in (line.workload, workload))
    if not alone or not now:
        return "-"
    return f"{now / alone if line.higher else alone / now:.2f} ({shown(now, line.metric)})"


def notes(result: Result) -> list[str]:
    """Return notes to the table: which contestants are missing, did less work or had fewer repeats."""
    found = [f"{result['contestants'][name]}: {reason}" for name, reason in result["missing"].items()]
    for workload in result["workloads"].values():
        tokens = {who: row["prompt_tokens"] for who, row in workload["rows"].items() if row["prompt_tokens"]}
        for who, row in workload["rows"].items():
            title, most = result["contestants"][who], max(tokens.values(), default=0)
            if who in tokens and tokens[who] < 0.9 * most:
                found.append(f"{title}, {workload['title']}: only {tokens[who]} of {most} prompt tokens")
            if row["missing"] and who not in result["missing"]:
                found.append(f"{title}, {workload['title']}: {row['missing']}")
    few: dict[int, list[str]] = {}
    for name, workload in result["workloads"].items():
        for who, row in workload["rows"].items():
            if 0 < row["repeats"] < result["settings"]["repeats"]:
                few.setdefault(row["repeats"], []).append(f"{result['contestants'][who]} ({name})")
    return found + [f"{count} repeats only: {', '.join(names)}" for count, names in sorted(few.items())]


def processor(result: Result, *, briefly: bool = False) -> str:
    """Return the processor, how many there are, its instruction sets, and the one that ternvl's kernels used."""
    machine, limits = result["machine"], result["limits"]
    sets = [machine.get("family", ""), *(() if briefly else machine.get("instructions", ()))]
    used = [f"kernels for {limits['isa']}"] if limits else []
    found = ", ".join(filter(None, [*sets, *used]))
    return f"{machine['cpu']}, {machine['num_cpus']} CPUs" + (f" ({found})" if found else "")


def section(result: Result) -> str:
    """Return the text for the README, between its markers."""
    limits = result["limits"]
    parts = [
        f"{result['date']}, {processor(result)}; random weights of InternVL3-1B's shape; median of "
        f"{result['settings']['repeats']} and half of the range of all, programs alternating, greedy, lengths forced. "
        f"Bold: the target is reached.",
        table(result),
    ]
    if limits:
        parts.append(
            f"The machine's limits: {limits['read_bytes_per_s'] / 1e9:.1f} GB/s of memory read, "
            f"{limits['int8_ops_per_s'] / 1e9:,.0f} GOP/s of int8, {limits['fp32_ops_per_s'] / 1e9:,.0f} GFLOP/s of "
            "float32 (`ternvl bench limits`)."
        )
    parts += [f"- {note}" for note in notes(result)]
    parts.append("Versions: " + "; ".join(result["versions"].values()) + ".")
    return "\n\n".join(parts[: 2 + bool(limits)]) + "\n\n" + "\n".join([*parts[2 + bool(limits) : -1], "", parts[-1]])


def summary(result: Result) -> str:
    """Return what the README shows: a line for each of `SUMMARY`, a column for each program, and where the rest is."""
    rows = [["", "ternvl", "OpenVINO", "llama.cpp", "transformers", "ternvl : OpenVINO"], ["---"] * 6]
    for line in SUMMARY:
        if line.workload in result["workloads"]:
            names = [line.ours, line.theirs, "llamacpp-q4_0" if "int4" in line.ours else "llamacpp-q8_0"]
            names += ["transformers-fp32"] if line.only != FOUR_BITS else [""]
            values = [shown(median(result, line.workload, name, line.metric), line.metric) for name in names]
            rows.append([line.title, *values, shown_ratio(result, line).strip("*")])
    return (
        f"{result['date']}, {processor(result, briefly=True)}, medians. Weights are random, of\n"
        "InternVL3-1B's shape, int8 (llama.cpp: Q8_0; transformers: float32) except in the line of int4 (Q4_0).\n\n"
        + "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
        + f"\n\nThe [whole table]({PAGE}) also has long prompts, targets and settings."
    )


def full(result: Result) -> str:
    """Return what the page of the results shows: the section and the chart."""
    return f"{section(result)}\n\n![The same figures as bars](peers-{result['date']}.svg)"


def rewrite(document: str, body: str | None) -> str:
    """Return the document with another text between its markers; None means that nothing was measured.

    Raises ValueError without the two markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{body or NOTHING}\n{END}{after}"


def shares(result: Result) -> str:
    """Describe for each contestant the rate at which decoding reads weights, as a share of the machine's limit."""
    if not result["limits"]:
        return ""
    limits, found = Limits(**result["limits"]), []
    for name, size in result["decode_bytes"].items():
        rate = median(result, "decode", name, DECODE)
        if size and rate:
            share = limits.share(bytes_per_s=size * rate)
            found.append(f"{result['contestants'][name]}, decode: {size / 1e6:.0f} MB a token; {share}")
    return "\n".join(found)
