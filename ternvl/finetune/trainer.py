"""The training loop: steps, evaluations and checkpoints. It prints nothing; it reports to a `Log`."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ternvl.errors import TernvlError
from ternvl.finetune import durable
from ternvl.finetune.adapter import TrainedAdapter
from ternvl.finetune.dataset import Dataset
from ternvl.finetune.features import Features
from ternvl.finetune.forward import Loss, answer_loss, pack
from ternvl.finetune.settings import Schedule, TrainingConfig


class TrainingStoppedError(TernvlError):
    """Training was stopped from outside; a checkpoint was written."""


class Log(Protocol):
    """Receives the events of a run."""

    def step(self, row: dict[str, float]) -> None:
        """Called after each step with step, epoch, loss, accuracy, lr, grad_norm, tokens, seconds."""

    def evaluation(self, row: dict[str, float]) -> None:
        """Called after each evaluation with step, eval_loss, eval_accuracy, seconds."""

    def durable(self) -> None:
        """Called before a checkpoint: all rows so far must be on disk when it returns."""


@dataclass(slots=True)
class RunState:
    """The state of a run beside its tensors. It is saved with each checkpoint."""

    step: int = 0
    """Number of steps done."""
    seconds: float = 0.0
    """Training time so far, including the time before the run was resumed."""
    best_loss: float = math.inf
    best_step: int = 0
    num_worse: int = 0
    """Number of evaluations since the best one."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The adapter's tensors at the best evaluation; empty before the first evaluation."""


class Trainer:
    """Trains one adapter."""

    def __init__(
        self,
        adapter: TrainedAdapter,
        features: Features,
        train: Dataset,
        held_out: Dataset | None,
        config: TrainingConfig,
    ) -> None:
        """Without `held_out` there is no evaluation, and the result is the adapter after the last step."""
        self.adapter, self.features = adapter, features
        self.train, self.held_out, self.config = train, held_out, config
        self.state = RunState()
        self.schedule = Schedule.of(config, len(train), adapter.model.config.language.hidden_size)
        self.steps_per_epoch = math.ceil(len(train) / self.schedule.batch_size)
        wanted = max(1, round(self.schedule.epochs * self.steps_per_epoch))
        self.num_steps = min(wanted, config.max_steps or wanted)
        self.eval_every = config.eval_every or max(1, self.num_steps // 10)
        self._optimizer = torch.optim.AdamW(adapter.parameters, lr=self.schedule.lr, weight_decay=config.weight_decay)

    def run(self, checkpoint: Path, log: Log, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Train to the last step, or until `patience` evaluations brought no better loss.

        A checkpoint is written every `save_every` steps. If `is_stopped` returns true after a step, a checkpoint is
        written and TrainingStoppedError raised. Raises TernvlError if training diverges, DataError if images have
        changed.
        """
        self.adapter.model.train()
        start = time.monotonic() - self.state.seconds
        while self.state.step < self.num_steps and not self._is_exhausted:
            row = self._step()
            self.state.step += 1
            self.state.seconds = time.monotonic() - start
            log.step(row | {"seconds": round(self.state.seconds, 3)})
            is_last = self.state.step == self.num_steps
            if self.held_out is not None and (self.state.step % self.eval_every == 0 or is_last):
                log.evaluation(self.evaluate() | {"seconds": round(time.monotonic() - start, 3)})
            stops = not is_last and is_stopped()
            if self.state.step % self.config.save_every == 0 or is_last or stops:
                log.durable()
                self.save(checkpoint)
            if stops:
                raise TrainingStoppedError(
                    f"Training was stopped after step {self.state.step} of {self.num_steps}. Its checkpoint is "
                    f"{checkpoint}; the same command with --resume continues from it."
                )

    @property
    def _is_exhausted(self) -> bool:
        return self.config.patience is not None and self.state.num_worse >= self.config.patience

    def result(self) -> dict[str, Tensor]:
        """Return the adapter's tensors at the best evaluation; without evaluations, the current ones."""
        return self.state.best or self.adapter.state()

    # --- a step -------------------------------------------------------------------------------------------------------

    def _step(self) -> dict[str, float]:
        """Run one step; return its row of the log.

        The gradient is that of the mean loss over all learned tokens of the step, however they are packed.
        """
        epoch, indices = self._batch(self.state.step)
        num_targets = sum(self.train[index].num_targets for index in indices)
        losses = []
        for members in self._packs(self.train, indices):
            loss = self._loss(self.train, members)
            (loss.total / num_targets).backward()
            losses.append((loss.total.item(), loss.num_right))
        lr = self._lr(self.state.step)
        norm = float(torch.nn.utils.clip_grad_norm_(self.adapter.parameters, self.config.max_grad_norm))
        total = sum(loss for loss, _ in losses) / num_targets
        if not math.isfinite(total + norm):
            raise TernvlError(
                f"Training has diverged: step {self.state.step + 1} has loss {total} and a gradient of norm {norm}. "
                f"A learning rate below {self.schedule.lr:g} may help."
            )
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {
            "step": self.state.step + 1,
            "epoch": round(epoch, 4),
            "loss": total,
            "accuracy": sum(right for _, right in losses) / num_targets,
            "lr": lr,
            "grad_norm": norm,
            "tokens": sum(self.train[index].num_tokens for index in indices),
        }

    def _batch(self, step: int) -> tuple[float, list[int]]:
        """Return the epochs done after a step, and the examples of the step. Each epoch has its own random order."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.train)))
        random.Random(f"order {self.config.seed} {epoch}").shuffle(order)
        size = self.schedule.batch_size
        return epoch + (number + 1) / self.steps_per_epoch, order[number * size : (number + 1) * size]

    def _packs(self, dataset: Dataset, indices: Sequence[int]) -> list[list[int]]:
        packs = pack([dataset[index].num_tokens for index in indices], self.config.pack_tokens)
        return [[indices[i] for i in members] for members in packs]

    def _loss(self, dataset: Dataset, indices: Sequence[int]) -> Loss:
        features = [self.features.of(dataset, index) for index in indices]
        return answer_loss(self.adapter.model, [dataset[index] for index in indices], features)

    def _lr(self, step: int) -> float:
        """Return the learning rate of a step: a linear rise, then half a cosine down to 0."""
        rise = round(self.config.warmup * self.num_steps)
        if step < rise:
            return self.schedule.lr * (step + 1) / (rise + 1)
        return self.schedule.lr * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.num_steps - rise)))

    # --- evaluation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the row of an evaluation on the held-out examples; keep the adapter if it is the best so far."""
        assert self.held_out is not None
        self.adapter.model.eval()
        packs = self._packs(self.held_out, range(len(self.held_out)))
        losses = [self._loss(self.held_out, members) for members in packs]
        self.adapter.model.train()
        count = sum(loss.num_tokens for loss in losses)
        mean = sum(loss.total.item() for loss in losses) / count
        state = self.state
        state.num_worse += 1
        if mean < state.best_loss:
            state.best_loss, state.best_step, state.num_worse = mean, state.step, 0
            state.best = self.adapter.state()
        right = sum(loss.num_right for loss in losses)
        return {"step": state.step, "eval_loss": mean, "eval_accuracy": right / count}

    # --- checkpoints --------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write a checkpoint: everything that the next step depends on."""
        progress = {name: getattr(self.state, name) for name in RunState.__slots__}
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
        """Continue from a checkpoint. Raises TernvlError if it cannot be read."""
        try:
            state: dict[str, Any] = durable.read_state(path)
            self.adapter.load(state["adapter"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.state = RunState(**state["progress"])
            _set_random_state(self.adapter.model.device, state["random"])
        except Exception as error:  # torch raises many kinds
            raise TernvlError(f"The checkpoint {path} cannot be read: {error}") from error


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the state of the generators that dropout draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
