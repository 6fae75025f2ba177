"""Quantising a model once (`ternvl quantize`), and measuring how its predictions change (`ternvl verify`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternvl.cli.flags import Model
from ternvl.errors import ConfigError, TernvlError
from ternvl.terminal import is_watched, shown_bytes, with_progress

if TYPE_CHECKING:
    from ternvl.config import ModelConfig
    from ternvl.loading import Quantized
    from ternvl.prompt.build import PromptBuilder
    from ternvl.quant.agreement import Agreement
    from ternvl.quant.guard import StageReport

_SHOWN = 5
"""The most layers that a list names."""
MIN_TOP1 = {"int8": 0.99, "int4": 0.95, "checkpoint": 0.99}
"""For each scheme, the share of next tokens that must agree with the unquantised model."""

_MAX_TOKENS = 64

Scheme = Annotated[str, typer.Option("--quantization", help="The scheme: int8, int4 or checkpoint.")]
Revision = Annotated[str | None, typer.Option("--revision", help="The branch, tag or commit of a model on the hub.")]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="A folder of images and texts on which quantisation measures its errors."),
]


def quantize(
    model: Model = None,
    quantization: Scheme = "int8",
    calibration: Calibration = None,
    revision: Revision = None,
    force: Annotated[
        bool, typer.Option("--force", help="Convert again even if the cache has the quantised model.")
    ] = False,
) -> None:
    """Quantise a model and store it in the cache, where serve, chat, run and LLM find it.

    The exit status is 1 if the scheme is not sound for the model.
    """
    from ternvl.quant.guard import unsound

    source = _Source.of(model, quantization, revision)
    quantised = source.quantised(calibration, force=force)
    size = shown_bytes(quantised.path.stat().st_size)
    typer.echo(f"{'Converted' if quantised.is_new else 'Already there'}: {quantised.path} ({size})")
    typer.echo(report_text(quantised.reports))
    if unsound(quantised.reports):  # loading has said why
        raise typer.Exit(1)


def compare(
    model: str | None,
    quantization: str,
    revision: str | None,
    calibration: Path | None,
    min_top1: float | None,
    max_tokens: int | None,
    json_file: Path | None,
) -> None:
    """Compare a quantised model with the unquantised one along the unquantised model's answers, and print the figures.

    Raises ConfigError for an invalid setting, TernvlError if the share of equal next tokens is below `min_top1`.
    """
    source = _Source.of(model, quantization, revision)
    bound = MIN_TOP1[quantization] if min_top1 is None else min_top1
    max_tokens = _MAX_TOKENS if max_tokens is None else max_tokens
    if not 0 <= bound <= 1:
        raise ConfigError(f"min_top1 is {bound}, but must be a share from 0 to 1.")
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}, but must be at least 1.")
    check_writable(json_file)
    rows, quantised = _compared(source, calibration, max_tokens)
    total = rows["all"]
    typer.echo(f"{source.folder.name}: {quantization} against unquantised, on the unquantised model's answers\n")
    typer.echo(table(rows))
    typer.echo(f"\n{report_text(quantised.reports)}")
    if total.positions * (1 - bound) < 1:
        typer.echo(f"\nOne position of {total.positions} is {1 / total.positions:.1%}; more samples are more reliable.")
    if json_file is not None:
        figures = _figures(source, rows, quantised.reports, bound)
        json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if total.top1 < bound:
        raise TernvlError(f"The next token agrees at {total.top1:.2%} of the positions, which is below {bound:.2%}.")


def check_writable(path: Path | None) -> None:
    """Raise ConfigError if the folder of a file to write does not exist."""
    if path is not None and not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written, because its folder does not exist.")


@dataclass(frozen=True)
class _Source:
    """A checkpoint to quantise."""

    folder: Path
    config: ModelConfig
    builder: PromptBuilder
    scheme: str

    @classmethod
    def of(cls, model: str | None, scheme: str, revision: str | None) -> _Source:
        from ternvl.checkpoint import source
        from ternvl.prompt.build import PromptBuilder
        from ternvl.prompt.tokenizer import Tokenizer

        if scheme not in MIN_TOP1:
            raise ConfigError(f"quantization is {scheme!r}, but must be one of {', '.join(MIN_TOP1)}.")
        folder = source.resolve(model, revision=revision)
        config = source.load_config(folder)
        return cls(folder, config, PromptBuilder(config, Tokenizer.from_folder(folder)), scheme)

    def quantised(self, calibration: Path | None, *, force: bool = False, must_keep: bool = True) -> Quantized:
        from ternvl.loading import load_quantized

        return load_quantized(
            self.folder,
            self.config,
            self.scheme,
            self.builder,
            progress=is_watched(),
            calibration=calibration,
            anew=force,
            must_keep=must_keep,
        )


def _compared(source: _Source, calibration: Path | None, max_tokens: int) -> tuple[dict[str, Agreement], Quantized]:
    """Return the agreement on pictures, on texts and on all samples, and the quantised model."""
    from ternvl.llm import LLM
    from ternvl.quant import agreement
    from ternvl.quant.samples import build, samples_to_compare
    from ternvl.types import SamplingParams

    prompts = [build(source.builder, sample) for sample in samples_to_compare(calibration)]
    quantised = source.quantised(calibration, must_keep=False)
    llm = LLM(source.folder, device="cpu", progress=is_watched())
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=max_tokens), progress=is_watched())
    answered = [(output.prompt, output.token_ids) for output in outputs]
    found = with_progress(
        "Comparing",
        lambda show: agreement.measure(llm.engine.model, quantised.model, answered, show),
        is_wanted=is_watched(),
    )
    pictures, texts = agreement.Agreement(), agreement.Agreement()
    for prompt, each in zip(prompts, found, strict=True):
        pictures, texts = (pictures + each, texts) if prompt.images else (pictures, texts + each)
    return {"pictures": pictures, "texts": texts, "all": pictures + texts}, quantised


def table(rows: dict[str, Agreement]) -> str:
    """Return the agreement as a table with one row for each kind of sample."""
    lines = [f"{'samples':<10}{'positions':>11}{'same next token':>17}{'KL, mean':>12}{'KL, largest':>13}"]
    for name, row in rows.items():
        shown = f"{row.top1:.2%}"
        lines.append(f"{name:<10}{row.positions:>11}{shown:>17}{row.kl_mean:>12.2e}{row.kl_max:>13.2e}")
    return "\n".join(lines)


def report_text(reports: Sequence[StageReport]) -> str:
    """Return a text with the formats of the layers, and the layers with the largest errors."""
    from ternvl.quant.guard import MODEL

    counts: dict[str, int] = {}
    whole = [report for report in reports if report.name == MODEL]
    reports = [report for report in reports if report.name != MODEL]
    for report in reports:
        counts[report.format] = counts.get(report.format, 0) + 1
    lines = [f"Layers: {', '.join(f'{count} {name}' for name, count in sorted(counts.items()))}"]
    lines.append(f"Smoothed: {_names([report for report in reports if report.smoothed])}")
    kept = [report for report in reports if report.format == "affine4"]
    if kept:
        lines.append(f"Kept in the checkpoint's 4 bits: {_names(kept)}")
    finer = [report for report in reports if report.format == "int8" and "int4" in report.tried]
    if any("int4" in report.tried for report in reports):
        lines.append(f"In int8, because int4 exceeded the error bound: {_names(finer)}")
    left = [report for report in reports if report.tried and report.format in ("float32", "bfloat16")]
    lines.append(f"Left unquantised: {_names(left)}")
    lines += [f"Whole model: diverges by {report.error:.2e} nats on average on the samples" for report in whole]
    worst = largest(reports)
    lines.append(f"Largest errors:{'' if worst else ' none'}")
    for report in worst:
        how = f"{report.format}{', smoothed' if report.smoothed else ''}"
        lines.append(f"  {report.error:>7.2%}  {report.name}  ({how})")
    return "\n".join(lines)


def _names(reports: Sequence[StageReport]) -> str:
    """Return the number of the layers, and the first of them with the smallest error of the formats that were tried."""
    named = [f"{report.name} ({min(report.tried.values()):.1%})" for report in reports[:_SHOWN]]
    more = ", ..." if len(reports) > _SHOWN else ""
    return f"{len(reports)}: {', '.join(named)}{more}" if reports else "none"


def largest(reports: Sequence[StageReport]) -> list[StageReport]:
    """Return the layers with the largest errors, in descending order."""
    from ternvl.quant.guard import MODEL

    errors = (report for report in reports if report.error and report.name != MODEL)
    return sorted(errors, key=lambda report: -report.error)[:_SHOWN]


def _figures(
    source: _Source, rows: dict[str, Agreement], reports: Sequence[StageReport], bound: float
) -> dict[str, Any]:
    samples = {
        name: {"positions": row.positions, "top1": row.top1, "kl_mean": row.kl_mean, "kl_max": row.kl_max}
        for name, row in rows.items()
    }
    errors = [{"name": report.name, "error": report.error, "format": report.format} for report in largest(reports)]
    is_met = rows["all"].top1 >= bound
    return {
        "model": str(source.folder),
        "quantization": source.scheme,
        "min_top1": bound,
        "is_met": is_met,
        "samples": samples,
        "largest_layer_errors": errors,
    }
