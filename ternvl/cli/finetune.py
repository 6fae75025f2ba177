"""`ternvl finetune` and `ternvl lora inspect | merge | eval`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ternvl.cli.flags import with_flags
from ternvl.errors import DataError
from ternvl.finetune.settings import AdapterConfig, TrainingConfig

Model = Annotated[
    str | None,
    typer.Argument(help="A checkpoint folder or a hub name; without it the small embedded model.", show_default=False),
]
BaseModel = Annotated[str, typer.Argument(help="A checkpoint folder or a hub name; ternvl-nano is the embedded model.")]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        exists=True,
        dir_okay=False,
        help="Lines of JSON: OpenAI's fine-tuning form or InternVL's annotation form.",
    ),
]
ImageFolder = Annotated[
    Path | None, typer.Option("--images", exists=True, file_okay=False, help="Folder that paths of images begin at.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

lora = typer.Typer(
    help="What can be done with a LoRA adapter: inspect it, merge it, score it.", no_args_is_help=True
)  # fmt: skip


@with_flags
def finetune(
    model: Model = None,
    data: Data = ...,  # type: ignore[assignment]  # typer's mark of what must be given
    images: ImageFolder = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder that the adapter goes to.")] = ...,  # type: ignore[assignment]
    eval_data: Annotated[
        Path | None,
        typer.Option("--eval-data", exists=True, dir_okay=False, help="Evaluate with this file instead of a share."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    device: Annotated[str, typer.Option("--device", help="Where it trains: auto, cpu, cuda, cuda:1.")] = "auto",
    max_dynamic_patch: Annotated[
        int | None,
        typer.Option(
            "--max-dynamic-patch", help="Tiles an image is cut into at most; by default as the checkpoint says."
        ),
    ] = None,
    *,
    adapter: AdapterConfig,
    training: TrainingConfig,
) -> None:
    """Train a LoRA adapter on conversations, with or without images."""
    from rich.console import Console

    from ternvl.finetune.train import Run, train

    run = Run(_named(model), data, images, eval_data, output, adapter, training, device, max_dynamic_patch, resume)
    with _every_bad_line(data):
        summary = train(run, Console())
    typer.echo(_summary(summary, output))


@contextmanager
def _every_bad_line(path: Path) -> Iterator[None]:
    """Prints them before the error, which names the first alone."""
    try:
        yield
    except DataError as error:
        for number, text in error.problems if len(error.problems) > 1 else ():
            typer.echo(f"{path}:{number}: {text}", err=True)
        raise


def _summary(summary: dict[str, Any], output: Path) -> str:
    from ternvl.cli.models import shown_bytes

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
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Its base: sizes of changes are then relative to it.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Show what an adapter changes: modules, rank, scale, sizes of the changes."""
    from ternvl.checkpoint.source import EMBEDDED
    from ternvl.finetune.inspect import inspect

    found = inspect(adapter, str(EMBEDDED) if model == EMBEDDED.name else model)
    typer.echo(_json(found) if json else _described(found))


def _described(found: dict[str, Any]) -> str:
    from ternvl.cli.models import shown_bytes

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
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
) -> None:
    """Write a checkpoint that has an adapter in its weights."""
    from ternvl.finetune.merge import merge

    count = merge(_named(model), adapter, out)
    typer.echo(f"{out}: {model} with {count} matrices changed by {adapter}")


@lora.command("eval", epilog="Example: [bold]ternvl lora eval --data test.jsonl --images photos --adapter mine[/bold]")
def evaluate_adapters(
    model: Model = None,
    data: Data = ...,  # type: ignore[assignment]
    images: ImageFolder = None,
    adapter: Annotated[list[Path] | None, typer.Option("--adapter", "-a", help="An adapter (repeatable).")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens an answer may have.", min=1)] = 256,
    limit: Annotated[int | None, typer.Option(help="Take only so many lines.", min=1)] = None,
    quantization: Annotated[str, typer.Option(help="Of the base: none, int8, int4 or auto.")] = "none",
    show_wrong: Annotated[int, typer.Option(help="Print so many answers that differ.", min=0)] = 0,
    json: AsJson = False,
) -> None:
    """Count how often the base and its adapters answer exactly as a data file does, decoding greedily."""
    from ternvl.finetune.evaluate import evaluate

    with _every_bad_line(data):
        scores = evaluate(
            _named(model),
            data,
            images,
            adapter or [],
            max_tokens=max_tokens,
            limit=limit,
            quantization=quantization,
            progress=sys.stdout.isatty(),
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
    """The embedded model goes by its name here, where an argument stands before others."""
    from ternvl.checkpoint.source import EMBEDDED

    return None if model == EMBEDDED.name else model


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
