"""What a server's work takes, in seconds, and where the figures come from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True, slots=True)
class Rates:
    """The time of a step of the engine, and what a request takes beside it."""

    step: float
    """Whatever the step computes."""
    prompt_token: float = 0.0
    tile: float = 0.0
    answer_token: float = 0.0
    """For each token that is drawn: the slope over the number of running answers."""
    request: float = 0.0
    """The time of the server for a request that comes during a step (HTTP, prompt), by which the next one is later."""
    before: float = 0.0
    """From the client's send to the engine's queue, beside other requests' work."""
    image: float = 0.0
    """More of it for a request with images: decoding and tiling, in a process of its own."""
    after: float = 0.0
    """From the end of a step to the client."""
    noise: tuple[float, ...] = ()
    """What steps with prompts took, in times of what they take on average: values that are equally likely."""
    delays: tuple[float, ...] = ()
    """The same of `before`, in seconds; empty where it is a constant."""

    def of_step(self, prompt_tokens: int, tiles: int, answer_tokens: int) -> float:
        """Return the seconds of a step."""
        return self.step + self.prompt_token * prompt_tokens + self.tile * tiles + self.answer_token * answer_tokens


@dataclass(frozen=True, slots=True)
class Settings:
    """The limits of a replica, with the names and defaults of `ternvl serve` on a CPU."""

    max_num_seqs: int = 16
    max_num_batched_tokens: int = 256
    max_num_batched_tiles: int = 1
    max_queue: int = 256
    num_blocks: int = 16_384
    block_size: int = 16
    image_tiles: int = 1_000
    """The tiles whose features the image cache keeps."""
    max_loras: int = 8
    adapter_seconds: float = 0.05
    """To load an adapter from the disk."""


FULL_SIZE = Rates(
    step=0.0153, prompt_token=0.00102, tile=1.22, answer_token=0.00203, request=0.001, before=0.003, image=0.03
)
"""InternVL3-1B's shape, int8, two cores: solved from medians of benchmarks/results/peers.md (2026-11-26).

One stream 57.7 tokens/s: step + answer_token = 17.3 ms. Eight streams 254.3 tokens/s: step + 8 answer_token = 31.5 ms.
950 tokens in 0.97 s: 1.02 ms each. One tile with about 280 tokens in 1.49 s, 13 tiles with about 3,350 in 19.8 s: 1.2
and 1.26 s a tile. `request`, `before` and `image` are assumed: HTTP costs about what it costs the embedded model.
"""


def write(path: Path, found: dict[str, Any]) -> None:
    """Write figures as JSON."""
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Return the figures of a file. Raises OSError and ValueError."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def as_json(rates: Rates) -> dict[str, Any]:
    """Return rates with four significant digits."""

    def rounded(value: Any) -> Any:
        return [rounded(each) for each in value] if isinstance(value, tuple) else float(f"{value:.4g}")

    return {name: rounded(value) for name, value in asdict(rates).items()}


def from_json(found: dict[str, Any]) -> Rates:
    """Return the rates that `as_json` wrote."""
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in found.items()}
    return Rates(**values)
