"""Runs a training loop on several processes of one thread, which is faster for small matrices than many threads."""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from queue import Empty
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

T = TypeVar("T")
_PATIENCE = 1.0
"""Seconds without data after which processes that generate it are looked after."""


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
    if dist.get_world_size() == 1:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in params])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for param, piece in zip(params, flat.split([p.numel() for p in params]), strict=True):
        param.grad = piece.view_as(param)


def stream(make: Callable[[str], Iterator[T]], seed: str, workers: int) -> Iterator[T]:
    """Iterate over what `make(seed)` generates, or without end over what processes generate from seeds of their own.

    Raises RuntimeError if one of these processes ends.
    """
    if not workers:
        yield from make(seed)
        return
    context = mp.get_context("spawn")
    queue = context.Queue(2 * workers)
    seeds = [f"{seed} {number}" for number in range(workers)]
    processes = [context.Process(target=_fill, args=(queue, make, each), daemon=True) for each in seeds]
    for process in processes:
        process.start()
    while True:
        try:
            yield pickle.loads(queue.get(timeout=_PATIENCE))
        except Empty:
            if not all(process.is_alive() for process in processes):
                raise RuntimeError("A process that generates data has ended; its output above says why.") from None


def _fill(queue: Queue[bytes], make: Callable[[str], Iterator[T]], seed: str) -> None:
    torch.set_num_threads(1)
    for each in make(seed):
        queue.put(pickle.dumps(each))  # as bytes, since tensors themselves would need much shared memory


class Clock:
    """The clock of a run, of which a share may be done. All processes use the time of the first, so that they stop at
    the same step."""

    def __init__(self, minutes: float, done: float = 0.0) -> None:
        self.start, self.seconds = time.time() - done * minutes * 60, minutes * 60

    def progress(self) -> float:
        """Return the share of the time that has passed. It exceeds 1 when the run must end."""
        now = torch.tensor((time.time() - self.start) / self.seconds, dtype=torch.float64)
        dist.broadcast(now, 0)
        return now.item()
