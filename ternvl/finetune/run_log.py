"""The log of a training run: `metrics.jsonl`, a plot of the loss, and a progress bar."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINES = 20
"""Number of lines that a run prints if the console is not a terminal."""


class RunLog:
    """The trainer's `Log`: writes rows to a file, and a bar or lines of text to the console."""

    def __init__(self, path: Path, num_steps: int, *, first_step: int, console: Console) -> None:
        """`path` is `metrics.jsonl`. Its rows after `first_step`, whose steps will run again, are removed."""
        self._path, self._num_steps, self._console = path, num_steps, console
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_rows(path) if row["step"] <= first_step]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("Training", total=num_steps, completed=first_step, loss="")
        self._eval = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()

    def step(self, row: dict[str, float]) -> None:
        """Write the row of a step, and update the console."""
        self._write(row)
        loss = f"loss {row['loss']:.4f}{self._eval}"
        self._bar.update(self._task, completed=row["step"], loss=loss)
        if not self._console.is_terminal and row["step"] % max(1, self._num_steps // _LINES) == 0:
            left = row["seconds"] / row["step"] * (self._num_steps - row["step"])
            self._console.print(f"step {row['step']}/{self._num_steps}  {loss}  {_minutes(left)} left", highlight=False)

    def evaluation(self, row: dict[str, float]) -> None:
        """Write the row of an evaluation."""
        self._write(row)
        self._eval = f"  held out {row['eval_loss']:.4f}"

    def durable(self) -> None:
        """Sync all rows to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, row: dict[str, float]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl`, without a last row that is incomplete; none if there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG file that plots the losses over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "held out", "o-")):
        if points := [(row["step"], row[key]) for row in rows if key in row]:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4)
    axes.set(xlabel="step", ylabel="loss of a token (natural logarithm)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02}"
