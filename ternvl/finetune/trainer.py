"""The training loop: steps, evaluations, checkpoints. It shows nothing; a `Log` is told."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ternvl.errors import TernvlError
from ternvl.finetune import durable
from ternvl.finetune.adapter import Adapter
from ternvl.finetune.dataset import Dataset
from ternvl.finetune.features import Features
from ternvl.finetune.forward import Loss, answer_loss, pack
from ternvl.finetune.settings import TrainingConfig


class Log(Protocol):
    """What is told of a run."""

    def step(self, row: dict[str, float]) -> None:
        """After each step: step, epoch, loss, accuracy, lr, grad_norm, tokens, seconds."""

    def evaluation(self, row: dict[str, float]) -> None:
        """After each evaluation: step, eval_loss, eval_accuracy, seconds."""

    def durable(self) -> None:
        """Before a checkpoint: what was told so far has to outlive a kill."""


@dataclass(slots=True)
class Progress:
    """Where a run is. It is saved with each checkpoint."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Of training so far, over all times it was taken up again."""
    best_loss: float = math.inf
    best_step: int = 0
    num_worse: int = 0
    """Evaluations since the best."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The adapter of the best evaluation."""


class Trainer:
    """One run."""

    def __init__(
        self, adapter: Adapter, features: Features, train: Dataset, held_out: Dataset | None, config: TrainingConfig
    ) -> None:
        """Without `held_out` nothing is evaluated, and the adapter of the last step counts."""
        self.adapter, self.features = adapter, features
        self.train, self.held_out, self.config = train, held_out, config
        self.progress = Progress()
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        wanted = max(1, round(config.epochs * self.steps_per_epoch))
        self.num_steps = min(wanted, config.max_steps or wanted)
        self.eval_every = config.eval_every or max(1, self.num_steps // 10)
        self._optimizer = torch.optim.AdamW(adapter.parameters, lr=config.lr, weight_decay=config.weight_decay)

    def run(self, checkpoint: Path, log: Log) -> None:
        """Train to the end, or until `patience` is spent; `checkpoint` is written every `save_every` steps."""
        self.adapter.model.train()
        begin = time.monotonic() - self.progress.seconds
        while self.progress.step < self.num_steps and not self._is_exhausted:
            row = self._step()
            self.progress.step += 1
            self.progress.seconds = time.monotonic() - begin
            log.step(row | {"seconds": round(self.progress.seconds, 3)})
            is_last = self.progress.step == self.num_steps
            if self.held_out is not None and (self.progress.step % self.eval_every == 0 or is_last):
                log.evaluation(self.evaluate() | {"seconds": round(time.monotonic() - begin, 3)})
            if self.progress.step % self.config.save_every == 0 or is_last:
                log.durable()
                self.save(checkpoint)

    @property
    def _is_exhausted(self) -> bool:
        return self.config.patience is not None and self.progress.num_worse >= self.config.patience

    def result(self) -> dict[str, Tensor]:
        """The adapter of the best evaluation; without evaluations the present one."""
        return self.progress.best or self.adapter.state()

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, float]:
        """The gradients of all packs are those of the mean over all tokens of the step: how they are packed does not
        matter."""
        epoch, indices = self._batch(self.progress.step)
        num_targets = sum(self.train[index].num_targets for index in indices)
        losses = []
        for run in self._packs(self.train, indices):
            loss = self._loss(self.train, run)
            (loss.total / num_targets).backward()
            losses.append((loss.total.item(), loss.num_right))
        lr = self._lr(self.progress.step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters, self.config.max_grad_norm))
        total = sum(loss for loss, _ in losses) / num_targets
        if not math.isfinite(total + norm):
            raise TernvlError(
                f"Step {self.progress.step + 1} has a loss of {total} and gradients of norm {norm}: training has "
                f"diverged. A lower rate than {self.config.lr:g} may help."
            )
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {
            "step": self.progress.step + 1,
            "epoch": round(epoch, 4),
            "loss": total,
            "accuracy": sum(right for _, right in losses) / num_targets,
            "lr": lr,
            "grad_norm": norm,
            "tokens": sum(self.train[index].num_tokens for index in indices),
        }

    def _batch(self, step: int) -> tuple[float, list[int]]:
        """The epochs done after a step, and the examples of the step: each epoch has an order of its own."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.train)))
        random.Random(f"order {self.config.seed} {epoch}").shuffle(order)
        size = self.config.batch_size
        return epoch + (number + 1) / self.steps_per_epoch, order[number * size : (number + 1) * size]

    def _packs(self, dataset: Dataset, indices: Sequence[int]) -> list[list[int]]:
        runs = pack([dataset[index].num_tokens for index in indices], self.config.pack_tokens)
        return [[indices[i] for i in run] for run in runs]

    def _loss(self, dataset: Dataset, indices: Sequence[int]) -> Loss:
        features = [self.features.of(dataset, index) for index in indices]
        return answer_loss(self.adapter.model, [dataset[index] for index in indices], features)

    def _lr(self, step: int) -> float:
        """A linear rise, then half a cosine down to nothing."""
        rise = round(self.config.warmup * self.num_steps)
        if step < rise:
            return self.config.lr * (step + 1) / (rise + 1)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.num_steps - rise)))

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and share of right tokens on what is held out; the best so far is remembered."""
        assert self.held_out is not None
        self.adapter.model.eval()
        packs = self._packs(self.held_out, range(len(self.held_out)))
        losses = [self._loss(self.held_out, run) for run in packs]
        self.adapter.model.train()
        count = sum(loss.num_tokens for loss in losses)
        mean = sum(loss.total.item() for loss in losses) / count
        progress = self.progress
        progress.num_worse += 1
        if mean < progress.best_loss:
            progress.best_loss, progress.best_step, progress.num_worse = mean, progress.step, 0
            progress.best = self.adapter.state()
        right = sum(loss.num_right for loss in losses)
        return {"step": progress.step, "eval_loss": mean, "eval_accuracy": right / count}

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything that the next step depends on."""
        progress = {name: getattr(self.progress, name) for name in Progress.__slots__}
        durable.write_state(
            path,
            {
                "progress": progress,
                "adapter": self.adapter.state(),
                "optimizer": self._optimizer.state_dict(),
                "random": _random_state(self.adapter.model.device),
            },
        )

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises TernvlError where it is broken."""
        try:
            state: dict[str, Any] = durable.read_state(path)
            self.adapter.load(state["adapter"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
            _set_random_state(self.adapter.model.device, state["random"])
        except Exception as error:  # torch raises many kinds
            raise TernvlError(f"The checkpoint {path} cannot be read: {error}") from error


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the generators that dropout draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
