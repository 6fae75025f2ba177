"""Draws a result: one panel per line of the table, one bar per contestant, relative to the best peer."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks.peers.report import COLUMNS, LINES, Line, Result, median, shown

COLOURS = {"ternvl": "#d9480f", "openvino": "#4c6ef5", "llamacpp": "#868e96", "transformers": "#ced4da"}
_ACROSS = 3


def draw(result: Result, path: Path) -> None:
    """Write the chart as .png or .svg, by the suffix of `path`."""
    lines = [line for line in LINES if measured(result, line)]
    seen = {(line.workload, line.metric): line for line in reversed(lines)}  # int8 and int4 share a panel
    panels = list(reversed(seen.values()))
    down = max(1, -(-len(panels) // _ACROSS))
    figure, axes = pyplot.subplots(down, _ACROSS, figsize=(15, 3.0 * down), squeeze=False, layout="constrained")
    for axis, line in zip(axes.flat, panels, strict=False):
        panel(axis, result, line)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.suptitle(f"{result['date']}, {result['machine']['cpu']}: 1 is the best peer", fontsize=12)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def measured(result: Result, line: Line) -> dict[str, float]:
    """Return the median values by contestant."""
    values = {name: median(result, line.workload, name, line.metric) for name in COLUMNS}
    return {name: value for name, value in values.items() if value is not None}


def panel(axis: Axes, result: Result, line: Line) -> None:
    """Draw one metric. The bar of the best peer has length 1; the value is written after each bar."""
    values = measured(result, line)
    peers = [value for name, value in values.items() if not name.startswith("ternvl")] or list(values.values())
    best = max(peers) if line.higher else min(peers)
    names = list(reversed(values))
    bars = axis.barh(
        [result["contestants"][name] for name in names],
        [values[name] / best for name in names],
        color=[COLOURS[name.split("-")[0]] for name in names],
    )
    axis.bar_label(bars, [shown(values[name], line.metric) for name in names], padding=3, fontsize=8)
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    better = "more is better" if line.higher else "less is better"
    title = line.title.removesuffix(", int8").removesuffix(", int4")
    axis.set_title(f"{title} ({better})", fontsize=9)
    axis.margins(x=0.22)
    axis.tick_params(labelsize=8)
