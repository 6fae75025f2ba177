"""Muon for matrices, AdamW for other parameters: models of this size need about half the steps of AdamW alone.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). The scale that lets Muon
use AdamW's learning rates is Moonshot's ("Muon is Scalable for LLM Training", arXiv 2502.16982).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest orthogonal matrices by Newton-Schulz iteration: [B, R, C] -> [B, R, C], in float32."""
    x = matrices.transpose(1, 2) if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.transpose(1, 2) if matrices.shape[1] > matrices.shape[2] else x


def orthogonalize_together(matrices: Tensor) -> Tensor:
    """Do the work of `orthogonalize` for matrices that all processes hold: each of them computes its share."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return orthogonalize(matrices)
    own = slice(dist.get_rank(), None, dist.get_world_size())
    updates = torch.zeros_like(matrices)
    updates[own] = orthogonalize(matrices[own])
    dist.all_reduce(updates)
    return updates


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum. Matrices of one shape are updated together."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
            for param in group["params"]:
                if param.grad is not None:
                    by_shape[tuple(param.shape)].append(param)
            for shape, params in by_shape.items():
                self._update(group, shape, params)

    def _update(self, group: dict[str, float], shape: tuple[int, ...], params: list[nn.Parameter]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        directions = []
        for param in params:
            assert param.grad is not None
            buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
            buffer.lerp_(param.grad, 1 - momentum)
            directions.append(param.grad.lerp(buffer, momentum))
        updates = orthogonalize_together(torch.stack(directions)) * (0.2 * math.sqrt(max(shape)))
        for param, update in zip(params, updates, strict=True):
            param.mul_(1 - lr * group["decay"]).add_(update, alpha=-lr)


class Optimizers:
    """Both optimisers with one schedule: a linear warm-up, a plateau, and a linear decay over the last `cooldown` of
    the time."""

    def __init__(self, model: nn.Module, *, lr: float, warmup: int = 30, cooldown: float = 0.4) -> None:
        inner = ("encoder.layers.", "model.layers.", "mlp1.")
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and any(part in n for part in inner)]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self.both: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=lr),
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.params = [*matrices, *rest]
        self.lr, self.warmup, self.cooldown = lr, warmup, cooldown

    def rate(self, step: int, progress: float) -> float:
        """Return the learning rate at a step; `progress` is the share of the time that has passed."""
        return self.lr * min(1.0, (step + 1) / self.warmup, max((1 - progress) / self.cooldown, 0.02))

    def step(self, step: int, progress: float, clip: float = 1.0) -> None:
        """Apply the gradients and clear them."""
        nn.utils.clip_grad_norm_(self.params, clip)
        for optimizer in self.both:
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step, progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dicts(self) -> list[dict[str, Any]]:
        """Return the states of both optimisers."""
        return [optimizer.state_dict() for optimizer in self.both]

    def load_state_dicts(self, states: list[dict[str, Any]]) -> None:
        """Restore what `state_dicts` returned."""
        for optimizer, state in zip(self.both, states, strict=True):
            optimizer.load_state_dict(state)
