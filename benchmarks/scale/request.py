"""A request in a simulation: what it asks for, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from benchmarks.scale.caches import Chain, Lease


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a prompt: where its tokens stand, and its tiles."""

    digest: Hashable
    start: int
    num_tokens: int
    num_tiles: int


@dataclass(slots=True, eq=False)
class Request:
    """A request, and what became of it."""

    arrival: float
    chain: Chain
    """The prompt."""
    answer: int
    """The tokens of the answer, at least 1."""
    images: tuple[Image, ...] = ()
    adapter: str | None = None
    key: str = ""
    """What a router by affinity looks at."""
    then: tuple[Hashable, int] | None = None
    """The segment that the answer becomes for the next turn of the conversation."""
    region: int = 0
    distance: float = 0.0
    """Seconds for the way to the server and back."""
    num_tokens: int = 0
    num_computed: int = 0
    started: float = math.nan
    first: float = math.nan
    """When the client has the first token."""
    ended: float = math.nan
    num_cached: int = 0
    num_missed: int = 0
    """Images that were found neither with the prefix nor by their features."""
    refused: str = ""
    """Why it was refused; empty if it was not."""
    lease: Lease | None = field(default=None, repr=False)
    waited_cold: bool = False
    """Whether it waited for a replica to start."""
    source: object = field(default=None, repr=False)
    """The conversation that it belongs to."""

    def __post_init__(self) -> None:
        self.num_tokens = sum(tokens for _, tokens in self.chain)

    @property
    def ttft(self) -> float:
        """Seconds until the client has the first token."""
        return self.first - self.arrival
