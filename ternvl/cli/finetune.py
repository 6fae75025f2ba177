"""`ternvl finetune` and `ternvl lora inspect | merge | eval`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ternvl.cli.flags import Model, help_alone, with_flags
from ternvl.cli.signals import stop_requests
from ternvl.embedded import adapter_folder
from ternvl.errors import DataError
from ternvl.finetune.settings import AdapterConfig, TrainingConfig
from ternvl.terminal import is_watched, shown_bytes

BaseModel = Annotated[
    str, typer.Argument(help="A checkpoint folder or a name on the hub; ternvl-nano is the embedded model.")
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        exists=True,
        dir_okay=False,
        help="A file with one JSON object per line, in OpenAI's fine-tuning form or InternVL's annotation form.",
    ),
]
ImageFolder = Annotated[
    Path | None,
    typer.Option("--images", exists=True, file_okay=False, help="The folder that relative paths of images start from."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

lora = help_alone(typer.Typer(help="Inspect, merge or evaluate LoRA adapters."))


@with_flags
def finetune(
    model: Model = None,
    data: Data = ...,  # type: ignore[assignment]  # typer's mark of a required option
    images: ImageFolder = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write the adapter to.")] = ...,  # type: ignore[assignment]
    eval_data: Annotated[
        Path | None,
        typer.Option(
            "--eval-data", exists=True, dir_okay=False, help="Evaluate on this file instead of a share of the data."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    device: Annotated[
        str, typer.Option("--device", help="The device to train on: auto, cpu, cuda or cuda:1.")
    ] = "auto",
    max_dynamic_patch: Annotated[
        int | None,
        typer.Option(
            "--max-dynamic-patch", help="The most tiles that an image is cut into; by default the checkpoint's number."
        ),
    ] = None,
    *,
    adapter: AdapterConfig,
    training: TrainingConfig,
) -> None:
    """Train a LoRA adapter on conversations, with or without images."""
    from rich.console import Console

    from ternvl.finetune.train import Run, train
    from ternvl.finetune.trainer import TrainingStoppedError

    run = Run(_named(model), data, images, eval_data, output, adapter, training, device, max_dynamic_patch, resume)
    try:
        with _printed_problems(data):
            summary = train(run, Console(), stop_requests())
    except TrainingStoppedError as error:
        typer.echo(f"ternvl: {error}", err=True)
        raise typer.Exit(130) from None
    typer.echo(_summary(summary, output))


@contextmanager
def _printed_problems(path: Path) -> Iterator[None]:
    """Print all invalid lines of a data file before the error, which names only the first."""
    try:
        yield
    except DataError as error:
        for number, text in error.problems if len(error.problems) > 1 else ():
            typer.echo(f"{path}:{number}: {text}", err=True)
        raise


def _summary(summary: dict[str, Any], output: Path) -> str:
    loss = f"loss {summary['loss']:.4f}"
    if summary["eval_loss"] is not None:
        loss += f", held out {summary['eval_loss']:.4f} (best, after step {summary['best_step']})"
    return (
        f"{summary['steps']} steps in {summary['seconds'] / 60:.1f} minutes; {loss}\n"
        f"{summary['trained_parameters']:,} parameters trained; peak memory {shown_bytes(summary['peak_memory'])}\n"
        f"The adapter is in {output}, its metrics and plot in {output / 'run'}."
    )


@lora.command("inspect", epilog="Example: [bold]ternvl lora inspect my-adapter --model OpenGVLab/InternVL3-1B[/bold]")
def inspect_adapter(
    adapter: Annotated[Path, typer.Argument(help="The folder of the adapter, or french or inventory.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="The base model; with it, the changes are also shown relative to its weights."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Show the modules that an adapter changes, its rank and scale, and the sizes of the changes."""
    from ternvl.finetune.inspect import inspect

    found = inspect(adapter_folder(adapter), model)
    typer.echo(_json(found) if json else _described(found))


def _described(found: dict[str, Any]) -> str:
    lines = [
        f"base {found['base']}; rank {found['rank']}, alpha {found['alpha']:g}, scale {found['scale']:g}; "
        f"{found['num_parameters']:,} parameters, {shown_bytes(found['num_bytes'])}",
        f"{'module':<50} {'count':>5} {'shape':>13} {'norm: mean':>11} {'max':>9} {'relative':>9}",
    ]
    for row in found["modules"]:
        shape = " x ".join(map(str, row["shape"]))
        relative = f"{row['relative_mean']:.1%}" if "relative_mean" in row else "-"
        numbers = f"{row['norm_mean']:>11.4g} {row['norm_max']:>9.4g} {relative:>9}"
        lines.append(f"{row['module']:<50} {row['count']:>5} {shape:>13} {numbers}")
    return "\n".join(lines)


@lora.command("merge", epilog="Example: [bold]ternvl lora merge OpenGVLab/InternVL3-1B my-adapter merged[/bold]")
def merge_adapter(
    model: BaseModel,
    adapter: Annotated[Path, typer.Argument(help="The folder of the adapter, or french or inventory.")],
    out: Annotated[Path, typer.Argument(help="The folder to write the merged checkpoint to.")],
) -> None:
    """Add an adapter to the weights of its base model, and write them as a checkpoint."""
    from ternvl.finetune.merge import merge

    count = merge(_named(model), adapter_folder(adapter), out)
    typer.echo(f"{out}: {model} with {count} matrices changed by {adapter}")


@lora.command("eval", epilog="Example: [bold]ternvl lora eval --data test.jsonl --images photos --adapter mine[/bold]")
def evaluate_adapters(
    model: Model = None,
    data: Data = ...,  # type: ignore[assignment]
    images: ImageFolder = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option("--adapter", "-a", help="An adapter's folder, or french or inventory (repeatable)."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.", min=1)] = 256,
    limit: Annotated[int | None, typer.Option(help="The number of lines to evaluate; by default all.", min=1)] = None,
    quantization: Annotated[
        str, typer.Option(help="The quantisation of the base model: none, int8, int4, checkpoint or auto.")
    ] = "none",
    show_wrong: Annotated[int, typer.Option(help="The number of wrong answers to print.", min=0)] = 0,
    json: AsJson = False,
) -> None:
    """Count how often the base model and its adapters give exactly the answers of a data file, with greedy decoding."""
    from ternvl.finetune.evaluate import evaluate

    with _printed_problems(data):
        scores = evaluate(
            _named(model),
            data,
            images,
            adapter or [],
            max_tokens=max_tokens,
            limit=limit,
            quantization=quantization,
            progress=is_watched(),
        )
    if json:
        rows = [{"name": s.name, "right": s.num_right, "questions": s.num_questions} for s in scores]
        typer.echo(_json(rows))
        return
    for score in scores:
        typer.echo(f"{score.name:<40} {score.num_right:>6} of {score.num_questions} right ({score.percent:.1f} %)")
        for line, wanted, given in score.wrong[:show_wrong]:
            typer.echo(f"  line {line}: wanted {wanted!r}\n  {' ' * len(f'line {line}')}  given  {given!r}")


def _named(model: str | None) -> str | None:
    """Return a model's name, or None if it is the name of the embedded model."""
    from ternvl.checkpoint.source import EMBEDDED

    return None if model == EMBEDDED.name else model


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
