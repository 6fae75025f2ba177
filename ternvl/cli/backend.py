"""Who answers the requests of a command: a server, or a model that is loaded into this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternvl.config import EngineConfig, LoadingConfig
from ternvl.errors import ConfigError
from ternvl.kernels import build
from ternvl.limits import ImageLimits, VideoLimits
from ternvl.setting import setting
from ternvl.terminal import is_watched

if TYPE_CHECKING:
    from ternvl.llm import LLM


def load_model(
    model: str | None,
    loading: LoadingConfig,
    engine: EngineConfig | None = None,
    images: ImageLimits | None = None,
    videos: VideoLimits | None = None,
) -> LLM:
    """Load a model, with a progress bar in a terminal, while its kernels are compiled. Raises what `LLM` raises."""
    build.start()
    from ternvl.llm import LLM

    return LLM(model, loading, engine, images, videos, progress=is_watched())


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """Who answers. The fields are flags of the command line."""

    url: str | None = setting(
        None, "The server that answers, such as http://127.0.0.1:8000/v1; by default a model in this process."
    )
    model: str | None = setting(
        None, "The name of the model at the server, or a folder or hub name; by default the embedded model."
    )
    api_key: str | None = setting(None, "The server's key.", env="TERNVL_API_KEY", secret=True)
    lora: str | None = setting(None, "The LoRA adapter that answers, of a model in this process.")

    image_token: str = setting(
        "<image>", "What marks the places of several images in a text; empty sends texts and images in turn."
    )

    def client(self) -> dict[str, Any]:
        """Return the arguments of a client of `ternvl.tasks`; load the model if it is to be in this process.

        Raises ConfigError for settings that exclude each other, and what `LLM` raises.
        """
        if self.url is None and self.image_token != "<image>":
            raise ConfigError("--image-token is for a server.")
        if self.url is None:
            return {"server": self._load(), "model": None if self.lora is None else "adapter"}
        if self.lora is not None:
            raise ConfigError("--lora is for a model in this process; at a server, an adapter is a --model.")
        return {
            "server": self.url,
            "model": self.model,
            "api_key": self.api_key or None,
            "image_token": self.image_token or None,
        }

    def _load(self) -> LLM:
        llm = load_model(self.model, LoadingConfig(quantization="auto"))
        if self.lora is not None:
            llm.load_adapter("adapter", Path(self.lora).expanduser())
        return llm
