"""`ternvl eval`: the official prompts and metrics over a local folder, against a server or in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternvl.cli.backend import BackendConfig
from ternvl.cli.flags import with_flags
from ternvl.errors import ConfigError, EngineError, TaskError
from ternvl.setting import setting
from ternvl.terminal import is_watched, progress_bar

if TYPE_CHECKING:
    from ternvl.evaluation import Benchmark, Evaluation


@dataclass(frozen=True, slots=True)
class EvalConfig(BackendConfig):
    """Who is evaluated, and how. The fields are flags of the command line."""

    benchmark: str | None = setting(
        None, "The benchmark whose settings are used; --list shows them. Without one, --metric is needed."
    )
    metric: str | None = setting(None, "The metric, in place of the benchmark's.")
    prompt: str | None = setting(
        None, "The question as it is asked, with {question} and {options}, in place of the benchmark's."
    )
    max_tiles: int | None = setting(None, "The most tiles of an image, in place of the benchmark's number.")
    max_tokens: int | None = setting(None, "The most tokens of an answer, in place of the benchmark's number.")
    concurrency: int = setting(8, "The number of items that are asked at the same time.")
    limit: int | None = setting(None, "The number of items that are asked, from the first on; by default all.")


@with_flags
def evaluate(
    data: Annotated[Path | None, typer.Argument(help="A folder with items.jsonl and images, or such a file.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the answers; a run in it is continued.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the benchmarks and exit.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    *,
    eval: EvalConfig,
) -> None:
    """Evaluate a model on a folder of questions, with the prompts and metrics of the public benchmarks.

    A run that was stopped goes on where it was.
    """
    if list_all:
        typer.echo(_benchmarks())
        return
    if data is None or output is None:
        raise typer.BadParameter("the folder of the items and --output are required")
    evaluation = _evaluation(data, output, eval)
    items = evaluation.items()
    for line, text in items.broken:
        typer.echo(f"{items.path}:{line}: {text}", err=True)
    from ternvl.tasks.client import backend_of

    backend = backend_of(**eval.client())
    with progress_bar("Answering", is_wanted=is_watched()) as progress:
        try:
            results = evaluation.run(backend, items, progress)
        except (TaskError, EngineError) as error:
            raise TaskError(f"{error} The same command goes on after the answers so far.") from error
    typer.echo(_as_json(results) if json else _as_table(results))


def _evaluation(data: Path, output: Path, config: EvalConfig) -> Evaluation:
    from ternvl.evaluation import Evaluation

    model = " with ".join(filter(None, (config.model or ("default" if config.url else "ternvl-nano"), config.lora)))
    return Evaluation(
        data=data,
        output=output,
        benchmark=_benchmark(config),
        name=config.benchmark or "custom",
        model=model,
        concurrency=config.concurrency,
        limit=config.limit,
    )


def _benchmark(config: EvalConfig) -> Benchmark:
    """Return the settings of the benchmark, with those that are given in their place."""
    from ternvl.evaluation import BENCHMARKS, Benchmark

    names = ("metric", "prompt", "max_tiles", "max_tokens")
    given: dict[str, Any] = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if config.benchmark is None:
        if "metric" not in given:
            raise ConfigError("Neither --benchmark nor --metric is given; --list shows the benchmarks.")
        return Benchmark(**{"prompt": "{question}\n{options}", **given})
    if config.benchmark not in BENCHMARKS:
        raise ConfigError(f"--benchmark is {config.benchmark!r}, but must be one of {', '.join(BENCHMARKS)}.")
    return replace(BENCHMARKS[config.benchmark], **given)


def _benchmarks() -> str:
    from ternvl.evaluation import BENCHMARKS

    rows = [f"{'benchmark':<16} {'metric':<13} {'tiles':>5} {'tokens':>6} {'InternVL3-1B':>12}  note"]
    for name, each in BENCHMARKS.items():
        score = "" if each.published is None else f"{each.published:.1f}"
        rows.append(
            f"{name:<16} {each.metric:<13} {each.max_tiles:>5} {each.max_tokens:>6} {score:>12}  {each.note}".rstrip()
        )
    return "\n".join(rows)


def _as_json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=2, ensure_ascii=False)


def _as_table(results: dict[str, Any]) -> str:
    from ternvl.evaluation.report import table

    return table(results)
