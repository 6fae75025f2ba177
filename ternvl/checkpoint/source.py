"""Finding a model: the embedded one, a folder, or a download from the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ternvl import embedded
from ternvl.checkpoint import config_json, gguf_model
from ternvl.checkpoint.json_section import Section
from ternvl.config import ModelConfig
from ternvl.errors import CheckpointError

EMBEDDED = embedded.MODEL
"""The folder of the model that comes with the package."""

# Pickles are never downloaded, because loading one runs the code in it.
PATTERNS = ("*.json", "*.safetensors", "*.txt")
FILES = (*PATTERNS, "*.gguf")
"""What answers depend on. GGUF files are not downloaded: repositories have one for each format."""
CONFIG_PATTERNS = ("config.json", "generation_config.json", "*.index.json")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_NAMES = {
    f"{owner}internvl3-{size}{kind}".lower(): f"OpenGVLab/InternVL3-{size}{kind}"
    for owner in ("", "opengvlab-")
    for size in ("1B", "2B", "8B", "14B")
    for kind in ("", "-Instruct", "-hf")
}
"""The hub names of the published models with this architecture, by their short names."""


def resolve(model: str | Path | None, *, revision: str | None = None) -> Path:
    """Return the folder of a model, which is downloaded first if necessary.

    `model` is a folder, a GGUF file in it, a hub name (`OpenGVLab/InternVL3-1B-Instruct`, or short
    `internvl3-1b-instruct`), or "ternvl-nano" or None for the embedded model. `revision` is a branch, tag or commit of
    a hub name. A download shows the hub library's progress bar, continues after a broken connection, and keeps files
    that an earlier run has completed.
    Raises CheckpointError if the model is not found or cannot be downloaded.
    """
    found = _located(model, revision)
    return found if isinstance(found, Path) else _download(found, revision)


def peek(model: str | Path | None, scratch: Path, *, revision: str | None = None) -> Path:
    """Return the folder of a model as `resolve` does, but download no weights.

    Of a hub's model that is not on this machine, the configuration is downloaded into `scratch`, which is returned.
    Raises what `resolve` raises.
    """
    found = _located(model, revision)
    if isinstance(found, Path):
        return found
    with suppress(CheckpointError):
        folder = _download(found, revision, local_files_only=True)
        if any(folder.glob("*.safetensors")):
            return folder
    return _download(found, revision, patterns=CONFIG_PATTERNS, local_dir=scratch)


def _located(model: str | Path | None, revision: str | None) -> Path | str:
    """Return the folder of a model, or its name on the hub. Raises CheckpointError for anything else."""
    folder = EMBEDDED if model is None else _path(model)
    if model == EMBEDDED.name and not folder.exists():
        folder = EMBEDDED
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"The revision {revision!r} needs a model on the hub, but {folder} is a folder.")
        return folder
    if model is None:
        raise CheckpointError(f"This installation has no embedded model: the folder {folder} does not exist.")
    if folder.exists() and folder.suffix == ".gguf" and revision is None:
        return folder.parent  # which has both files of the model
    if folder.exists():
        raise CheckpointError(
            f"{folder} is a file; a model is a folder with a config.json and safetensors files, or with two GGUF files."
        )
    name = _HUB_NAMES.get(str(model).lower(), str(model))
    if not isinstance(model, str) or not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"{model} is neither an existing folder nor a model name such as OpenGVLab/InternVL3-1B-Instruct or "
            f"{EMBEDDED.name}."
        )
    return name


def _path(model: str | Path) -> Path:
    """Raises CheckpointError for an invalid path: of another type, too long, or in an unknown home folder."""
    try:
        folder = Path(model).expanduser()
        folder.exists()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{str(model)[:200]!r} is neither a folder nor the name of a model: {error}.") from error
    return folder


def _download(name: str, revision: str | None, *, patterns: Sequence[str] = PATTERNS, **options: Any) -> Path:
    """Return the folder of a download; `options` are those of `snapshot_download`. Raises CheckpointError."""
    # Importing the library takes half a second, which a local model does not need.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns], **options))
    except GatedRepoError as error:
        reason = "access to it must be granted on its page there, and HF_TOKEN must hold your token"
        raise CheckpointError(f"The model {name} is gated on the hub: {reason}.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {name} on the hub, or it is private and HF_TOKEN does not give access to it; `ternvl "
            "models` lists names."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"The model {name} has no revision {revision!r} on the hub.") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"The model {name} is not completely on this machine, and the hub cannot be reached to download it; check "
            "the connection, or name a folder."
        ) from error
    except Exception as error:  # network, disk and protocol errors of several libraries
        what = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"The download of the model {name} failed: {what.rstrip('.')}. The same command continues it."
        ) from error


def load_config(folder: Path) -> ModelConfig:
    """Read `config.json` in either layout, and the sampling defaults of `generation_config.json` if that exists.

    Without `config.json`, the metadata of GGUF files are the configuration.
    Raises CheckpointError if both are absent, or if a file is unreadable or asks for an unimplemented feature.
    """
    path = folder / "config.json"
    if not path.is_file():
        if any(folder.glob("*.gguf")):
            return gguf_model.read_config(folder)
        raise CheckpointError(f"{folder} holds no config.json, so it is not a model folder.")
    generation = folder / "generation_config.json"
    defaults = read_object(generation) if generation.is_file() else Section(str(generation), {})
    return config_json.read(read_object(path), defaults)


def read_object(path: Path) -> Section:
    """Return the JSON object in a file. Raises CheckpointError if the file holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, but holds {type(values).__name__}.")
    return Section(str(path), values)
