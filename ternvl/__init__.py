"""InternVL3 in PyTorch: an engine that serves it, an offline API and an OpenAI-compatible server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ternvl.params import SamplingParams
from ternvl.version import __version__

if TYPE_CHECKING:
    from ternvl.llm import LLM

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `LLM` at its first use, because it imports torch, which takes seconds.

    The CPU kernels are compiled meanwhile, unless they are up to date.
    """
    if name == "LLM":
        from ternvl.kernels import build

        build.start()
        from ternvl.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
