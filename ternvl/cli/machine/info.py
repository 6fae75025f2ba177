"""`ternvl info`: what a model is and what it needs on this machine, without loading it."""

from __future__ import annotations

import json as json_text
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternvl.cli.flags import Model
from ternvl.cli.quantization import Revision
from ternvl.config import EngineConfig
from ternvl.terminal import shown_bytes, shown_count

if TYPE_CHECKING:
    import torch

    from ternvl.checkpoint.stored import StoredWeights
    from ternvl.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Precision:
    """What a model takes in one precision."""

    quantization: str
    weights: int
    """Bytes. Where the guard leaves layers in more bits, they are more."""
    kv_cache: int
    """The bytes of the KV cache for one context of the length that is served by default."""
    fits: bool
    """Whether both are less than the free memory."""


def info(
    model: Model = None,
    revision: Revision = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model is, and what it needs on this machine, without loading its weights.

    Of a model on the hub that is not on this machine, only the configuration is read.
    """
    from ternvl.checkpoint import source

    with TemporaryDirectory() as scratch:
        folder = source.peek(model, Path(scratch), revision=revision)
        described = describe(folder, str(model or folder.name), is_here=folder != Path(scratch))
    typer.echo(json_text.dumps(described, indent=2) if json else as_text(described))


def describe(folder: Path, name: str, *, is_here: bool) -> dict[str, Any]:
    """Return what the model in a folder is and needs; `is_here` is false for a folder without weights.

    Raises CheckpointError for a folder that is no model or whose weights are broken.
    """
    from ternvl.checkpoint import source
    from ternvl.checkpoint.stored import StoredWeights, is_quantised, rounding
    from ternvl.engine.settings import free_memory
    from ternvl.kernels.loader import instruction_set, why_chosen
    from ternvl.loading import resolve_device
    from ternvl.model.internvl import num_parameters
    from ternvl.quant.scheme import automatic_scheme, why_unquantised
    from ternvl.quant.size import weight_bytes

    config, device = source.load_config(folder), resolve_device("auto")
    files = _files(folder) if is_here else None
    size = weight_bytes(config, "none") if files is None else files["bytes"]
    free = free_memory(device)
    stored = StoredWeights(folder) if is_here and is_quantised(folder) else None
    formats = {} if stored is None else stored.formats()
    auto = automatic_scheme(size, device, has_four_bits=stored is not None and bool(stored.names()))
    return {
        "model": name,
        "folder": str(folder.resolve()) if is_here else None,
        "files": files,
        "rounding": rounding(formats, auto) or None,
        "dtype": config.dtype,
        "parameters": num_parameters(config),
        "vision": asdict(config.vision),
        "language": asdict(config.language),
        "context": {
            "positions": config.language.max_position_embeddings,
            "served": min(EngineConfig().max_model_len, config.language.max_position_embeddings),
        },
        "images": _images(config),
        "machine": {
            "runs_on": instruction_set(device),
            "why_kernels": why_chosen() if device.type == "cpu" else "",
            "threads": _threads(device),
            "free_memory": free,
            "auto": auto,
            "why_unquantised": why_unquantised(size, device),
        },
        "precisions": [asdict(each) for each in _precisions(config, device, free, stored)],
    }


def _files(folder: Path) -> dict[str, Any]:
    """Return the layout, the number of files, their bytes, and the number of tensors, from the headers alone."""
    from ternvl.checkpoint.names import layout_of
    from ternvl.checkpoint.tensor_files import tensor_names

    paths = [path for kind in ("*.safetensors", "*.gguf") for path in sorted(folder.glob(kind))]
    names = tensor_names(folder)
    return {
        "layout": "GGUF" if paths[0].suffix == ".gguf" else layout_of(names),
        "count": len(paths),
        "bytes": sum(path.stat().st_size for path in paths),
        "tensors": len(names),
    }


def _images(config: ModelConfig) -> dict[str, int]:
    most = config.max_dynamic_patch
    tiles = most + 1 if config.use_thumbnail and most > 1 else most
    return {
        "tile_size": config.tile_size,
        "max_tiles": most,
        "tokens_per_tile": config.tokens_per_tile,
        "max_tokens": tiles * config.tokens_per_tile,
    }


def _precisions(config: ModelConfig, device: torch.device, free: int, stored: StoredWeights | None) -> list[Precision]:
    import torch

    from ternvl.engine.settings import cache_dtype, resolve
    from ternvl.model.kv_cache import block_bytes
    from ternvl.quant.size import weight_bytes

    computed = torch.float32 if device.type == "cpu" else getattr(torch, config.dtype)
    context = min(EngineConfig().max_model_len, config.language.max_position_embeddings)
    wanted = EngineConfig(max_model_len=context, kv_cache_memory=2**60)  # whatever is free
    found = []
    quantised = ("int8", "int4", *(("checkpoint",) if stored is not None and stored.names() else ()))
    for scheme in ("none", *(quantised if device.type == "cpu" else ())):
        reduced = scheme != "none"
        engine = resolve(
            wanted,
            config.language,
            dtype=computed,
            device=device,
            is_quantized=reduced,
            caches_in_int8=reduced,
        )
        block = block_bytes(config.language, engine.block_size, cache_dtype(engine, computed))
        weights, cache = weight_bytes(config, scheme, stored), -(-context // engine.block_size) * block
        found.append(Precision(scheme, weights, cache, fits=weights + cache < free))
    return found


def _threads(device: torch.device) -> int:
    from ternvl.machine.num_threads import default_threads

    return default_threads() if device.type == "cpu" else 0


def as_text(found: dict[str, Any]) -> str:
    """Return what `describe` returns as lines for people."""
    context, images, machine, files = (found[name] for name in ("context", "images", "machine", "files"))
    rows = [
        ("Model", f"{found['model']}, {shown_count(found['parameters'])} parameters in {found['dtype']}"),
        ("Folder", found["folder"] or "not on this machine; `ternvl run --model` and the other commands download it"),
        ("Vision", _tower(found["vision"])),
        ("Language", f"{_tower(found['language'])}, {found['language']['vocab_size']:,} tokens"),
        ("Context", f"{context['positions']:,} positions, of which {context['served']:,} are served by default"),
        ("Images", f"up to {images['max_tiles']} tiles of {images['tile_size']} x {images['tile_size']} pixels, "
                   f"{images['tokens_per_tile']} tokens each: at most {images['max_tokens']:,} tokens an image"),
        ("Runs on", _machine(machine)),
        ("Default", _default(machine)),
    ]  # fmt: skip
    if found["rounding"]:
        rows.append(("Rounding", found["rounding"]))
    if files is not None:
        plural = "s" if files["count"] != 1 else ""
        text = f"{files['layout']} layout, {files['count']} file{plural}, {shown_bytes(files['bytes'])}"
        rows.insert(2, ("Files", f"{text}, {files['tensors']} tensors"))
    lines = [f"{label + ':':<11}{text}" for label, text in rows]
    lines += ["", f"{'quantization':<13}{'weights':>10}{'KV cache of one context':>26}{'fits':>6}"]
    for row in found["precisions"]:
        sizes = f"{shown_bytes(row['weights']):>10}{shown_bytes(row['kv_cache']):>26}"
        lines.append(f"{row['quantization']:<13}{sizes}{'yes' if row['fits'] else 'no':>6}")
    return "\n".join(lines)


def _default(machine: dict[str, Any]) -> str:
    if machine["auto"] == "checkpoint":
        return "checkpoint, because its layers have 4 bits already"
    if machine["auto"] == "int8":
        return "int8, because this CPU is fast at it"
    return f"not quantised, because {machine['why_unquantised']}"


def _tower(sizes: dict[str, Any]) -> str:
    return f"{sizes['num_layers']} layers of {sizes['hidden_size']}, {sizes['num_heads']} heads"


def _machine(machine: dict[str, Any]) -> str:
    free = f"{shown_bytes(machine['free_memory'])} of memory free"
    if not machine["threads"]:
        return f"{machine['runs_on']}, {free}"
    kernels = "torch, without native kernels" if machine["runs_on"] == "torch" else f"kernels for {machine['runs_on']}"
    threads = f"{machine['threads']} thread{'s' if machine['threads'] != 1 else ''}"
    return f"{threads}, {kernels} ({machine['why_kernels']}), {free}"
