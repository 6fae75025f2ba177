"""The value types everyone shares: what a prompt is, what is asked of it, what comes back.

They are frozen, carry no behaviour beyond derived values, and import nothing of the package, so every
folder can speak them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class FinishReason(StrEnum):
    """Why a sequence ended. The server turns `STOP` into "tool_calls" where calls were parsed."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"


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

    @property
    def stop(self) -> int:
        """Index just past the image's last context token."""
        return self.start + self.num_tokens


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
class SamplingParams:
    """How tokens are drawn. Ranges are the page's: see `validate`.

    A temperature of 0 is greedy. `top_k` 0 keeps all tokens. `logprobs` None returns none, k >= 0 returns
    the drawn token's log probability and the k best. `max_tokens` None runs to the end of the context.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered once; `n` answers are `n` requests with seeds of their own."""

    id: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log probabilities after penalties and before truncation, at one position."""

    logprob: float
    """Of the token that was drawn."""
    top: tuple[tuple[int, float], ...] = ()
    """The k likeliest (token id, log probability), best first."""


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What one engine step says of one request: new tokens, and the end if it came."""

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = field(default=())
