"""A request on its way: its tokens so far, how many of them are in the KV cache, and where.

There are no phases. A sequence has `num_tokens` and `num_computed`, and the scheduler closes the gap: a long one is
what others call prefill, a gap of one is decoding, and preemption sets `num_computed` back to 0.
"""

from __future__ import annotations

from enum import Enum, auto

from ternvl.types import FinishReason, Request


class Status(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """The state of one request. Only `Scheduler` changes it once it is added."""

    __slots__ = (
        "arrival",
        "block_table",
        "finish_reason",
        "max_num_tokens",
        "num_computed",
        "num_encoded_tiles",
        "request",
        "seed",
        "status",
        "stop_ids",
        "token_ids",
    )

    def __init__(
        self, request: Request, *, arrival: int, seed: int, stop_ids: frozenset[int], max_model_len: int
    ) -> None:
        """`arrival` orders sequences of equal priority. `stop_ids` are the model's own; the request's are added."""
        params = request.params
        self.request = request
        self.arrival = arrival
        self.seed = seed
        self.stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else stop_ids)
        self.max_num_tokens = min(max_model_len, request.prompt.num_tokens + (params.max_tokens or max_model_len))
        self.token_ids = list(request.prompt.token_ids)
        self.num_computed = 0
        self.num_encoded_tiles = 0
        self.block_table: list[int] = []
        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def order(self) -> tuple[int, int]:
        """Sequences are served by ascending order: lower `priority` first, then first come, first served."""
        return self.request.priority, self.arrival

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.request.prompt.num_tokens

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.request.prompt.num_tokens :]

    @property
    def num_tiles(self) -> int:
        return sum(image.num_tiles for image in self.request.prompt.images)

    def num_ready(self, num_encoded_tiles: int) -> int:
        """How many leading tokens have their embeddings once that many tiles are encoded."""
        for image in self.request.prompt.images:
            encoded = num_encoded_tiles - image.first_tile
            if encoded < image.num_tiles:
                return image.start + max(0, encoded) * (image.num_tokens // image.num_tiles)
        return self.num_tokens

    def append(self, token_id: int) -> None:
        """Take a drawn token; sets `finish_reason` where it is the end. A token that stops is not kept."""
        if token_id in self.stop_ids:
            self.finish_reason = FinishReason.STOP
            return
        self.token_ids.append(token_id)
        if self.num_tokens >= self.max_num_tokens:
            self.finish_reason = FinishReason.LENGTH
