"""Trains an adapter on a data file: the work of `ternvl finetune`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ternvl.checkpoint import source, weights
from ternvl.errors import ConfigError
from ternvl.finetune import dataset, durable
from ternvl.finetune.adapter import TrainedAdapter, require
from ternvl.finetune.data import DataFile
from ternvl.finetune.dataset import Dataset
from ternvl.finetune.features import Features
from ternvl.finetune.forward import checkpoint_layers
from ternvl.finetune.run_log import RunLog, plot, read_rows
from ternvl.finetune.settings import AdapterConfig, TrainingConfig, warnings
from ternvl.finetune.trainer import Trainer
from ternvl.limits import ImageLimits
from ternvl.loading import resolve_device
from ternvl.model.internvl import InternVL
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.terminal import is_watched, progress_bar, with_progress


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """The arguments of one call of the command."""

    model: str | None
    data: Path
    images: Path | None
    eval_data: Path | None
    output: Path
    """Folder of the adapter; the other files of the run are in `run/` below it."""
    adapter: AdapterConfig
    training: TrainingConfig
    device: str = "auto"
    max_dynamic_patch: int | None = None
    resume: bool = False

    @property
    def folder(self) -> Path:
        return self.output / "run"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"


Stopping = contextlib.AbstractContextManager[Callable[[], bool]]
"""Is open while training runs; its value says whether training has to stop."""


def train(run: Run, console: Console, stopping: Stopping | None = None) -> dict[str, Any]:
    """Train an adapter, write it, and return a summary: steps, seconds, losses, peak_memory in bytes.

    Raises TrainingStoppedError if `stopping` says so, ConfigError for invalid settings, DataError for data that cannot
    be learned from.
    """
    for module in ("peft", "matplotlib"):
        require(module)
    _check_output(run)
    device = resolve_device(run.device)
    folder = source.resolve(run.model)
    config = source.load_config(folder)
    limits = ImageLimits(max_images=1024, allow_local_media=run.images)
    builder = PromptBuilder(config, Tokenizer.from_folder(folder), limits, run.max_dynamic_patch)
    learned, held_out = _datasets(run, builder)
    dtype = _dtype(run.training.dtype, device)
    load = partial(weights.load, folder, config, dtype=dtype)
    model = with_progress("Loading weights", lambda show: load(progress=show), is_wanted=is_watched()).to(device)
    trainer = _trainer(run, model, str(run.model or folder.name), learned, held_out)
    _write_settings(run, folder.name, trainer, learned, held_out)
    for warning in warnings(len(learned), trainer.num_steps):
        console.print(f"Warning: {warning}", highlight=False, soft_wrap=True)
    if run.resume and run.checkpoint.exists():
        trainer.load(run.checkpoint)
        console.print(f"Training continues after step {trainer.state.step}.", highlight=False)
    metrics = run.folder / "metrics.jsonl"
    with (
        RunLog(metrics, trainer.num_steps, first_step=trainer.state.step, console=console) as log,
        stopping or contextlib.nullcontext(lambda: False) as is_stopped,
    ):
        trainer.run(run.checkpoint, log, is_stopped)
    trainer.adapter.save(run.output, trainer.result())
    return _finish(run, trainer, read_rows(metrics), console)


def _check_output(run: Run) -> None:
    """Raise ConfigError if the run would overwrite files that it has not written itself."""
    if (run.output / "adapter_config.json").exists() and not run.checkpoint.exists():
        raise ConfigError(f"{run.output} holds an adapter already; choose another folder.")
    if not run.resume and run.output.exists() and (not run.output.is_dir() or any(run.output.iterdir())):
        raise ConfigError(
            f"{run.output} is not an empty folder; use --resume to continue a run that was started there."
        )


def _datasets(run: Run, builder: PromptBuilder) -> tuple[Dataset, Dataset | None]:
    """Return the examples to learn, and those that are held out for evaluation."""
    with progress_bar("Checking data", is_wanted=is_watched()) as progress:
        learned = dataset.read(DataFile(run.data, run.images), builder, run.training.max_length, progress)
        if run.eval_data is not None:
            file = DataFile(run.eval_data, run.images)
            return learned, dataset.read(file, builder, run.training.max_length, progress)
    if run.training.eval_share == 0:
        if run.training.patience is not None:
            raise ConfigError("patience is given, but eval-share is 0, so no data is held out for evaluation.")
        return learned, None
    return learned.split(run.training.eval_share, run.training.seed)


def _write_settings(run: Run, base: str, trainer: Trainer, learned: Dataset, held_out: Dataset | None) -> None:
    """Write `run/config.json`. A resumed run raises ConfigError if its settings differ from that file."""
    settings = {
        "model": str(run.model or base),
        "max_dynamic_patch": run.max_dynamic_patch,
        **dataclasses.asdict(run.adapter),
        **dataclasses.asdict(run.training),
        **dataclasses.asdict(trainer.schedule),
        "data": learned.file.digest,
        "eval_data": None if run.eval_data is None or held_out is None else held_out.file.digest,
    }
    settings["target"] = list(run.adapter.target)
    path = run.folder / "config.json"
    if not (run.resume and path.exists()):
        durable.write_json(path, settings)
        return
    started_with = source.read_object(path).values
    for name, value in settings.items():
        if started_with.get(name) != value:
            raise ConfigError(
                f"The run in {run.output} was started with {name} {started_with.get(name)!r}, not {value!r}."
            )


def _trainer(run: Run, model: InternVL, name: str, learned: Dataset, held_out: Dataset | None) -> Trainer:
    adapter = TrainedAdapter(model, run.adapter, base=name, seed=run.training.seed)
    if run.training.gradient_checkpointing:
        checkpoint_layers(model)
    features = Features(model, is_trained=bool({"vision", "projector"} & {*run.adapter.target}))
    return Trainer(adapter, features, learned, held_out, run.training)


_HARDLY = 0.9
"""The share of its first value above which the last loss counts as hardly fallen."""


def _finish(run: Run, trainer: Trainer, rows: list[dict[str, Any]], console: Console) -> dict[str, Any]:
    plot(rows, run.folder / "loss.png")
    state = trainer.state
    summary = {
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "loss": next(row["loss"] for row in reversed(rows) if "loss" in row),
        "eval_loss": state.best_loss if state.best else None,
        "best_step": state.best_step if state.best else state.step,
        "trained_parameters": sum(parameter.numel() for parameter in trainer.adapter.parameters),
        "peak_memory": peak_memory(),
    }
    losses = [row["loss"] for row in rows if "loss" in row]
    if len(losses) > 1 and losses[-1] > _HARDLY * losses[0]:
        console.print(
            f"Warning: The loss hardly fell, from {losses[0]:.3f} to {losses[-1]:.3f}, so the adapter changes little. "
            f"A learning rate above {trainer.schedule.lr:g} (--lr) or more --epochs may help.",
            highlight=False,
            soft_wrap=True,
        )
    durable.write_json(run.folder / "summary.json", summary)
    run.checkpoint.unlink(missing_ok=True)
    return summary


def peak_memory() -> int:
    """Return the peak memory of this process in bytes, or 0 if the system does not report it."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _dtype(name: str, device: torch.device) -> torch.dtype:
    """Resolve "auto" to bfloat16 if the device has instructions for it, else to float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32
