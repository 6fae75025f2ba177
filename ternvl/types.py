"""The value types that every folder shares: a prompt with its images, and what the engine returns for it.

They are frozen and have no behaviour beyond derived values. `SamplingParams` and `Grammar` are defined in `params.py`
and can be imported from here, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from ternvl.params import Grammar, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FileState", "FinishReason", "FirstToken", "Grammar", "ImageSpan", "Progress", "Prompt", "PromptLogprobs",
    "SamplingParams", "TokenLogprobs", "TokenOutput",
]  # fmt: skip

Progress = Callable[[int, int], None]
"""Called with the number of items done and the number of all items."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What a file holds: its size in bytes and its SHA-256 in hexadecimal."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> FileState:
        """Return the state of a file that holds `content`."""
        return cls(len(content), hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"{self.size} bytes with SHA-256 {self.sha256[:16]}..."


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended it, or a stop string did, or the grammar allows nothing more."""
    LENGTH = "length"
    """It reached `max_tokens` or the end of the context."""
    TOOL_CALLS = "tool_calls"
    """The model ended it, and it contains tool calls. `answer/choice.py` sets it; the engine never does."""
    ABORT = "abort"
    """It was aborted."""


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where one image stands in a prompt: its run of context tokens and its rows of `Prompt.pixel_values`."""

    start: int
    """Index in `Prompt.token_ids` of the image's first context token."""
    num_tokens: int
    """Context tokens of the image: tiles times tokens a tile."""
    first_tile: int
    """Row of `Prompt.pixel_values` of the image's first tile."""
    num_tiles: int
    digest: bytes
    """SHA-256 over the pixels of the image's tiles: two images share it iff they are the same work."""
    tile_digests: tuple[bytes, ...] = ()
    """SHA-256 over the pixels of each tile: tiles of any images share it iff they are equal. Empty if not computed."""

    @property
    def stop(self) -> int:
        """Index just past the image's last context token."""
        return self.start + self.num_tokens

    @property
    def tile_keys(self) -> tuple[bytes, ...]:
        """What stands for each tile in the caches: its digest or, if nobody has computed it, its place in the image."""
        return self.tile_digests or tuple(
            hashlib.sha256(b"ternvl tile of an image" + self.digest + tile.to_bytes(8, "big")).digest()
            for tile in range(self.num_tiles)
        )

    def tiles_after(self, position: int) -> range:
        """Return the places within the image of the tiles with tokens at or after a position of the prompt."""
        return range(max(0, position - self.start) // (self.num_tokens // self.num_tiles), self.num_tiles)


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A conversation as the model takes it."""

    token_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...] = ()
    pixel_values: Tensor | None = None
    """[N, 3, S, S] float32, normalised; the tiles of all images in order. None without images."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_image_tokens(self) -> int:
        return sum(image.num_tokens for image in self.images)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log probabilities at one position: of an answer after penalties and before truncation, of a prompt as the
    model gives them."""

    logprob: float
    """Of the token that stands there."""
    rank: int
    """1 for the likeliest token, otherwise 1 more than the number of likelier ones."""
    top: tuple[tuple[int, float], ...] = ()
    """The k likeliest (token id, log probability), best first."""


PromptLogprobs = tuple[TokenLogprobs | None, ...]
"""One value for each token of a prompt. The first token has None, and so have the context tokens of images: features of
an image stand in their place, so the model predicts no token there."""


class FirstToken(NamedTuple):
    """The times up to an answer's first token, in seconds of `perf_counter`."""

    added: float
    """When the request came to the engine's queue."""
    started: float
    """When its first step began."""
    drawn: float
    encoding: tuple[float, float] | None = None
    """When the first of the image tiles that it waited for began to be encoded, and when the last of them was."""

    @property
    def queue_seconds(self) -> float:
        return self.started - self.added

    @property
    def prefill_seconds(self) -> float:
        return self.drawn - self.started


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one engine step says of one request: new tokens, and the end if it came."""

    request_id: str
    token_ids: tuple[int, ...]
    """New tokens of the answer, `logprobs` beside them. A token that stops the answer is no part of it."""
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = field(default=())
    num_cached_tokens: int = 0
    """Tokens of the prompt that were in the KV cache when the request first ran."""
    stop: tuple[int, TokenLogprobs] | None = None
    """The token that stopped the answer, if one did and log probabilities were asked for."""
    prompt_logprobs: PromptLogprobs = ()
    """Of the whole prompt, in the first output of a request that asked for them."""
    first_token: FirstToken | None = field(default=None, compare=False)
    """In the first output of a request."""
