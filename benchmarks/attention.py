"""Time of paged attention against torch's attention on contiguous tensors: `python -m benchmarks.attention`.

Torch gets keys and values that were gathered before, in its fastest layout; the gather is timed separately. The
variants alternate, and each figure is the median of `--rounds`. With one thread, processor time is measured, which
other work on the machine disturbs less. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels import attention
from ternvl.kernels.loader import library

HEADS, KEY_HEADS, SIZE, BLOCK = 14, 2, 64, 16  # InternVL3-1B
CASES = {
    "prefill 512 of 512": (1, 512, 512),
    "prefill 512 of 4096": (1, 512, 4096),
    "prefill 512 of 16384": (1, 512, 16384),
    "decode 1 of 1024": (1, 1, 1024),
    "decode 1 of 16384": (1, 1, 16384),
    "decode 8 x 1 of 1024": (8, 1, 1024),
}


@dataclass
class Case:
    """Sequences of one length, each with the same number of queries."""

    num_sequences: int
    num_queries: int
    length: int

    def __post_init__(self) -> None:
        s, blocks = self.num_sequences, self.length // BLOCK
        self.q = torch.randn(s * self.num_queries, HEADS, SIZE)
        self.keys = torch.randn(s * blocks, KEY_HEADS, SIZE, BLOCK)
        self.values = torch.randn(s * blocks, KEY_HEADS, BLOCK, SIZE)
        self.tables = torch.randperm(s * blocks).view(s, blocks).int()
        self.starts = torch.arange(s + 1, dtype=torch.int32) * self.num_queries
        self.lengths = torch.full((s,), self.length, dtype=torch.int32)
        self.gathered = self.gather()
        self.mask = torch.arange(self.length) <= torch.arange(self.length - self.num_queries, self.length)[:, None]

    def paged(self) -> Tensor:
        """Run the kernel: [T, H, D]."""
        return attention.paged_attention(self.q, self.keys, self.values, self.tables, self.starts, self.lengths)

    def gather(self) -> tuple[Tensor, Tensor]:
        """Return contiguous keys and values [S, K, L, D]."""
        keys, values = self.keys[self.tables], self.values[self.tables]  # [S, blocks, K, ...]
        keys = keys.permute(0, 2, 1, 4, 3).flatten(2, 3)
        return keys.contiguous(), values.transpose(1, 2).flatten(2, 3).contiguous()

    def torch_sdpa(self) -> Tensor:
        """Run torch's attention in its faster form: [S, H, queries, D], or for one query [S, K, H / K, D]."""
        if self.num_queries == 1:
            q = self.q.view(self.num_sequences, KEY_HEADS, -1, SIZE)
            return F.scaled_dot_product_attention(q, *self.gathered)
        q = self.q.view(self.num_sequences, -1, HEADS, SIZE).transpose(1, 2)
        is_whole = self.num_queries == self.length
        mask = None if is_whole else self.mask
        return F.scaled_dot_product_attention(q, *self.gathered, attn_mask=mask, is_causal=is_whole, enable_gqa=True)

    @property
    def num_multiply_adds(self) -> int:
        """Number of multiply-adds under the causal mask."""
        return 2 * self.num_sequences * int(self.mask.sum()) * HEADS * SIZE

    @property
    def num_bytes(self) -> int:
        """Number of bytes of keys and values."""
        return 4 * (self.keys.numel() + self.values.numel())


def times(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, in rounds that alternate the calls."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, call in variants.items():
            start = clock()
            call()
            taken[name].append(clock() - start)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def measure(case: Case, rounds: int) -> dict[str, float]:
    """Return the figures of one case."""
    taken = times({"paged": case.paged, "torch": case.torch_sdpa, "gather": case.gather}, rounds)
    return {
        "paged_ms": taken["paged"] * 1e3,
        "torch_ms": taken["torch"] * 1e3,
        "gather_ms": taken["gather"] * 1e3,
        "torch_over_paged": taken["torch"] / taken["paged"],
        "paged_gflops": 2 * case.num_multiply_adds / taken["paged"] / 1e9,
        "paged_gb_per_s": case.num_bytes / taken["paged"] / 1e9,
    }


def main() -> None:
    """Measure the cases, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    loaded = library()
    source = torch.randn(1 << 24)
    read = times({"read": source.sum}, arguments.rounds)["read"]
    head = {
        "isa": loaded.isa if loaded else "torch",
        "threads": torch.get_num_threads(),
        "read_gb_per_s": source.nbytes / read / 1e9,
    }
    print(head)
    figures = {}
    for name in arguments.cases:
        figures[name] = {key: round(x, 3) for key, x in measure(Case(*CASES[name]), arguments.rounds).items()}
        print(f"{name:22}", figures[name])
    print(json.dumps(head | {"cases": figures}))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
