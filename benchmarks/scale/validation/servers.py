"""Two `ternvl serve` processes of the embedded model with one thread each, plain or recording."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.live.server import Server
from benchmarks.scale.rates import Settings

NUM_SEQS, BATCHED_TOKENS, IMAGE_TILES, TILE_BYTES = 8, 256, 50, 16 * 256 * 4
MIB = 2**20
FLAGS = (
    *("--speculation", "off", "--max-num-seqs", str(NUM_SEQS), "--max-model-len", "2048", "--log-level", "error"),
    *("--max-num-batched-tokens", str(BATCHED_TOKENS), "--max-num-batched-tiles", "1", "--prompt-workers", "1"),
    *("--kv-cache-memory", str(64 * MIB), "--image-cache-memory", str(IMAGE_TILES * TILE_BYTES)),
)


@dataclass
class Pair:
    """Two servers that are ready."""

    servers: list[Server]
    records: list[Path] = field(default_factory=list)
    """What they write, if they record."""
    ready_seconds: list[float] = field(default_factory=list)
    """From the start of a process to when it took requests."""

    @property
    def ports(self) -> list[int]:
        """Their ports."""
        return [each.port for each in self.servers]

    def settings(self) -> Settings:
        """Return their limits as the simulation wants them."""
        blocks = int(self.servers[0].metric("ternvl_engine_blocks"))
        return Settings(
            max_num_seqs=NUM_SEQS, max_num_batched_tokens=BATCHED_TOKENS, num_blocks=blocks, image_tiles=IMAGE_TILES
        )

    def cpu_seconds(self) -> float:
        """Return the processor time of the servers and their children so far."""
        return sum(_cpu(pid) for each in self.servers for pid in (each.process.pid, *each.workers()))

    def image_hits(self) -> tuple[float, float]:
        """Return the hits and the lookups of the image caches so far."""
        names = ("ternvl_engine_image_hits_total", "ternvl_engine_image_lookups_total")
        hits, lookups = (sum(each.metric(name) for each in self.servers) for name in names)
        return hits, lookups


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def pair(folder: Path, threads: int, *, recording: bool = False) -> Iterator[Pair]:
    """Start two servers, wait until both are ready, and stop them at the end."""
    flags, records = (*FLAGS, "--threads", str(threads)), []
    with ExitStack() as stack:
        servers = []
        for number in range(2):
            if recording:
                records.append(folder / f"steps-{number}.jsonl")
                command = [sys.executable, "-m", "benchmarks.scale.validation.recorder", str(records[-1])]
                servers.append(stack.enter_context(Server(folder, *flags, command=command)))
            else:
                servers.append(stack.enter_context(Server(folder, *flags)))
        ready = []
        for each in servers:
            each.ready()
            ready.append(time.monotonic() - each.began)
        yield Pair(servers, records, ready)
        for each in servers:
            each.end()
