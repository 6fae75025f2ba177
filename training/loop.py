"""The loop that trains the vision tower and the decoder together, on one or several processes.

The loss is that of the answers, plus the perception loss of stage 1 with a falling weight, so that the tower keeps the
codebook while the decoder learns to use its features.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from training import nano
from training.codebook import Codebook
from training.decoder import answer_loss
from training.optimizer import Optimizers
from training.parallel import Clock, average_gradients, stream
from training.pictures import Batch, PictureData
from training.vision_stage import Heads

NEW_HEADS_STEPS = 25
"""Steps in which the heads learn alone, if the run starts from a checkpoint, which has none."""
MakeData = Callable[[argparse.Namespace, str], PictureData]
"""Makes the data of a run, given its options and a seed."""


class JointModel(torch.nn.Module):
    """The model, and the heads of stage 1 that are used in training only."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = nano.build(seed)
        self.heads = Heads(nano.CONFIG.language.hidden_size)


def loss_of(
    joint: JointModel, codebook: Codebook, batch: Batch, perception: float, *, are_heads_new: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of the answers plus `perception` times that of the vision tower, and figures to print.

    New heads learn from the features, but do not teach the tower yet.
    """
    features = joint.model.encode_tiles(batch.pixels())  # [N, M, C]
    image_tokens: list[Tensor | None] = []
    row = 0
    for example in batch.examples:
        count = example.num_tiles
        image_tokens.append(features[row : row + count].flatten(0, 1) if count else None)
        row += count
    answer, right = answer_loss(joint.model, batch.examples, image_tokens)
    seen = features[batch.last_tiles]
    read_from = seen.detach() if are_heads_new else seen
    reading = joint.heads.loss(read_from, batch.labels)
    distance = F.mse_loss(seen, codebook.tokens(batch.labels))
    report = {"answer": answer.item(), "read": reading.item(), "mse": distance.item()}
    report |= {k: v for k, v in joint.heads.accuracy(seen, batch.labels).items() if not k.endswith("none")}
    for kind in sorted(set(batch.kinds)):
        marks = [mark for mark, its in zip(right.tolist(), batch.kinds, strict=True) if its == kind]
        report[f"{kind} tokens"] = sum(marks) / len(marks)
    return answer + perception * (reading + distance), report


def generate(make_data: MakeData, args: argparse.Namespace, seed: str) -> Iterator[Batch]:
    """Generate the batches of one process without end."""
    data = make_data(args, seed)
    while True:
        yield data.batch(args.batch // args.processes, args.pages // args.processes)


def train(
    rank: int, args: argparse.Namespace, make_data: MakeData, load: Callable[[JointModel, argparse.Namespace], bool]
) -> None:
    """Run the training loop of one process. `load` sets the first weights, and returns whether the heads have any."""
    joint, codebook = JointModel(0), Codebook(nano.CONFIG.language.hidden_size)
    have_heads = True if args.continued else load(joint, args)
    joint.to(args.device)
    codebook.to(args.device)
    optimizers = Optimizers(joint, lr=args.lr, cooldown=args.cooldown)
    first, done = resume(joint, optimizers, args.out) if args.continued else (0, 0.0)
    batches = stream(partial(generate, make_data, args), f"{args.seed} {rank} {first}", args.workers)
    clock, figures = Clock(args.minutes, done), Figures()
    for step in itertools.count(first):
        progress = clock.progress()
        if progress >= 1:
            break
        perception = args.perception * max(0.05, 1 - progress)
        is_new = not have_heads and step < NEW_HEADS_STEPS
        batch = next(batches).to(args.device)
        loss, report = loss_of(joint, codebook, batch, perception, are_heads_new=is_new)
        loss.backward()
        average_gradients(optimizers.params)
        optimizers.step(step - first, progress)
        figures.add(report)
        if rank == 0 and step % 25 == 24:
            print(f"{progress:.1%} step {step + 1} {figures}", flush=True)
            figures = Figures()
            save(joint, optimizers, args.out, step + 1, progress)
    if rank == 0:
        save(joint, optimizers, args.out, step, progress)


class Figures:
    """Means of the figures of several steps; a step may lack some of them."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def add(self, report: dict[str, float]) -> None:
        """Add the figures of a step. One that is not a number is left out: there was nothing to measure."""
        for name, value in report.items():
            if not math.isnan(value):
                self.values.setdefault(name, []).append(value)

    def __str__(self) -> str:
        return " ".join(f"{name} {sum(values) / len(values):.3f}" for name, values in self.values.items())


def resume(joint: torch.nn.Module, optimizers: Optimizers, path: Path) -> tuple[int, float]:
    """Restore the run that wrote a file; return its next step and its progress."""
    state = torch.load(path, map_location="cpu")
    joint.load_state_dict(state["weights"])
    optimizers.load_state_dicts(state["optimizers"])
    return state["step"], state["progress"]


def save(joint: torch.nn.Module, optimizers: Optimizers, path: Path, step: int, progress: float) -> None:
    """Write the weights and the state of the run, atomically."""
    state = {"weights": joint.state_dict(), "step": step, "progress": progress}
    torch.save(state | {"optimizers": optimizers.state_dicts()}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of a stage. A CUDA device is for one process, as the gradients are averaged on the CPU."""
    args = parser.parse_args()
    if args.device.type != "cpu" and args.processes > 1:
        parser.error("--device cuda trains in one process, so it needs --processes 1.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a stage that trains tower and decoder together."""
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pages", type=int, default=24, help="Pictures per step that only train the vision tower.")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--cooldown", type=float, default=1.0)
    parser.add_argument("--perception", type=float, default=0.5)
    parser.add_argument("--text-share", type=float, default=0.1)
    parser.add_argument("--several-share", type=float, default=0.22)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cpu"), help="cpu, or cuda for one process."
    )
    parser.add_argument("--workers", type=int, default=0, help="Processes that generate the data, for each process.")
    parser.add_argument("--resume", type=Path, default=None, help="A run's file, or a checkpoint, to start from.")
    parser.add_argument("--continued", action="store_true", help="Go on with the stopped run that wrote --out.")
    parser.add_argument("--out", type=Path, default=Path("runs/joint.pt"))
