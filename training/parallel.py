"""Runs a training loop on several processes of one thread, which is faster for small matrices than many threads."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn


def launch(worker: Callable[[int, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run `worker(rank, args)` on `args.processes` processes that can communicate."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run_worker, (worker, f"{folder}/store", args), nprocs=args.processes)


def _run_worker(
    rank: int, worker: Callable[[int, argparse.Namespace], None], store: str, args: argparse.Namespace
) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=args.processes)
    torch.set_num_threads(1)
    worker(rank, args)
    dist.destroy_process_group()


def average_gradients(params: list[nn.Parameter]) -> None:
    """Average gradients over the processes, in one message."""
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in params])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for param, piece in zip(params, flat.split([p.numel() for p in params]), strict=True):
        param.grad = piece.view_as(param)


class Clock:
    """The clock of a run. All processes use the time of the first, so that they stop at the same step."""

    def __init__(self, minutes: float) -> None:
        self.start, self.seconds = time.time(), minutes * 60

    def progress(self) -> float:
        """Return the share of the time that has passed. It exceeds 1 when the run must end."""
        now = torch.tensor((time.time() - self.start) / self.seconds, dtype=torch.float64)
        dist.broadcast(now, 0)
        return now.item()
