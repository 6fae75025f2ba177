"""The two models of the tables: what their servers take, and where each figure comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.scale.rates import FULL_SIZE, Rates, Settings, from_json
from benchmarks.scale.workload import Workload

GIB = 2**30


@dataclass(frozen=True)
class Model:
    """A model on replicas of one size."""

    name: str
    rates: Rates
    settings: Settings
    cores: int
    """Of a replica."""
    ready: float
    """Seconds from the start of the process until it takes requests, measured."""
    bar: float
    """The most seconds that the 99th percentile of the first token may take."""
    pace: float
    """The least tokens per second of an answer in the median, from its first token to its last."""
    tiles: int
    """Of an image."""
    tokens_per_tile: int
    parts: tuple[tuple[int, float], ...]
    """For each number of users a day, the part of the fleet that is simulated, as a fleet of its own."""
    sources: str

    def workload(self, users: float, **others: Any) -> Workload:
        """Return what so many people do."""
        return Workload(users, tiles=self.tiles, tokens_per_tile=self.tokens_per_tile, **others)

    def part(self, users: int) -> float:
        """Return the part that is simulated."""
        return dict(self.parts)[users]


def full_size() -> Model:
    """Return InternVL3-1B's shape in int8 on two cores."""
    return Model(
        "InternVL3-1B's shape, int8, two cores",
        FULL_SIZE,
        Settings(
            max_num_batched_tokens=512,
            num_blocks=GIB // (16 * 6_528),
            image_tiles=GIB // 4 // (256 * 896 * 4),
            adapter_seconds=0.2,
        ),
        cores=2,
        ready=1.85,
        bar=5.0,
        pace=20.0,
        tiles=1,
        tokens_per_tile=256,
        parts=((1_000, 1.0), (100_000, 1.0), (10_000_000, 0.01)),
        sources="the medians of [its comparison with other programs](../benchmarks/results/peers.md), 2026-11-26, "
        "two CPUs of an AMD EPYC; the load of an adapter is [measured](lora.md), the cost of HTTP is assumed",
    )


def embedded(found: dict[str, Any]) -> Model:
    """Return the embedded model on one core, with the figures of a validation."""
    return Model(
        "the embedded model, one core",
        from_json(found["rates"]),
        Settings(num_blocks=GIB // 4 // (16 * 4_096), image_tiles=GIB // 4 // (16 * 256 * 4), adapter_seconds=0.02),
        cores=1,
        ready=found["ready_seconds"],
        bar=0.5,
        pace=20.0,
        tiles=5,
        tokens_per_tile=16,
        parts=((1_000, 1.0), (100_000, 1.0), (10_000_000, 0.1)),
        sources=f"the calibration above, {found['date']}, {found['processor']}; the load of an adapter is assumed",
    )
