"""The contestants, with their environments and arguments."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVS, MODELS = HERE / ".envs", HERE / ".models"
LLAMA_VERSION = "0.3.36"


@dataclass(frozen=True)
class Places:
    """The folders of environments and models."""

    envs: Path = ENVS
    models: Path = MODELS

    def python(self, peer: str) -> Path:
        """Return the interpreter of a peer's environment; for ternvl, the interpreter that runs this script."""
        return Path(sys.executable) if peer == "ternvl" else self.envs / peer / "bin" / "python"

    @property
    def llama_source(self) -> Path:
        return self.envs / "src" / f"llama_cpp_python-{LLAMA_VERSION}" / "vendor" / "llama.cpp"

    @property
    def llama_server(self) -> Path:
        return self.llama_source / "build" / "bin" / "llama-server"


@dataclass(frozen=True)
class Contestant:
    """A program with weights in one format."""

    name: str
    peer: str
    format: str
    two_modes: bool = False
    """Whether one stream and several streams need different processes."""

    @property
    def title(self) -> str:
        return f"{TITLES[self.peer]} {self.format}"

    def files(self, places: Places) -> list[Path]:
        """Return all files that must exist."""
        models = places.models
        match self.peer:
            case "ternvl":
                return [models / "original" / "model.safetensors"]
            case "openvino":
                return [places.python(self.peer), models / self.name / "openvino_language_model.bin"]
            case "llamacpp":
                gguf, projector = models / f"{self.format.lower()}.gguf", models / "mmproj-f16.gguf"
                return [places.python(self.peer), places.llama_server, gguf, projector]
        return [places.python(self.peer), models / "hf-new" / "model.safetensors"]

    def command(self, places: Places, mode: str) -> list[str]:
        """Return the command that starts the worker."""
        models = places.models
        match self.peer:
            case "ternvl":
                arguments = [models / "original", self.format]
            case "openvino":
                arguments = [models / self.name, mode]
            case "llamacpp":
                gguf = models / f"{self.format.lower()}.gguf"
                arguments = [gguf, models / "mmproj-f16.gguf", places.llama_server, mode]
            case _:
                arguments = [models / "hf-new", {"fp32": "float32", "bf16": "bfloat16"}[self.format]]
        return [str(places.python(self.peer)), str(HERE / f"worker_{self.peer}.py"), *map(str, arguments)]


TITLES = {"ternvl": "ternvl", "openvino": "OpenVINO", "llamacpp": "llama.cpp", "transformers": "transformers"}
CONTESTANTS = {
    contestant.name: contestant
    for contestant in (
        Contestant("ternvl-int8", "ternvl", "int8"),
        Contestant("ternvl-int4", "ternvl", "int4"),
        Contestant("ternvl-none", "ternvl", "none"),
        Contestant("openvino-int8", "openvino", "int8", two_modes=True),
        Contestant("openvino-int4", "openvino", "int4", two_modes=True),
        Contestant("llamacpp-q8_0", "llamacpp", "Q8_0", two_modes=True),
        Contestant("llamacpp-q4_0", "llamacpp", "Q4_0", two_modes=True),
        Contestant("transformers-fp32", "transformers", "fp32"),
        Contestant("transformers-bf16", "transformers", "bf16"),
    )
}


def chosen(names: list[str]) -> list[Contestant]:
    """Return contestants by their names or by those of peers. Raises ValueError for an unknown name."""
    known = {*CONTESTANTS, *TITLES}
    for name in names:
        if name not in known:
            raise ValueError(f"There is no contestant {name!r}; there are {', '.join([*TITLES, *CONTESTANTS])}.")
    return [each for each in CONTESTANTS.values() if not names or each.name in names or each.peer in names]
