"""Stage 2, parallel to stage 1: the decoder learns to answer questions from exact image tokens.

No picture is drawn. The tokens are taken from the codebook and get noise, so that new scenes cost no time.
Run: `python -m training.language_stage --minutes 40 --out runs/language.pt`
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl.model.internvl import InternVL
from ternvl.prompt.messages import Message
from ternvl.prompt.tokenizer import Tokenizer
from training import nano, tasks
from training.codebook import Codebook, labels_of
from training.decoder import answer_loss
from training.optimizer import Optimizers
from training.parallel import Clock, average_gradients, launch
from training.scenes import Scene, random_scene
from training.tokens import QUESTION_WEIGHT, Encoder, Example, image_conversation, text_conversation, write_tokenizer

TOKENIZER = Path("runs/tokenizer")
TEXT_SHARE = 0.3
"""Share of conversations without an image."""


def random_question_scene(rng: random.Random, *, single_tile: bool = True, text_share: float = 0.42) -> Scene:
    """Generate a scene to ask about: mostly a few shapes, with a share of `text_share` text."""
    if rng.random() < text_share:
        text = tasks.string_to_draw(rng)
        return random_scene(rng, rng.choice((0, 0, 0, 1)), text=text, single_tile=single_tile)
    return random_scene(rng, rng.choice((0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5)), single_tile=single_tile)


class OracleData:
    """Generates examples with image tokens from the codebook."""

    def __init__(self, encoder: Encoder, codebook: Codebook, seed: int) -> None:
        self.encoder, self.codebook = encoder, codebook
        self.rng, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.recent: deque[Tensor] = deque(maxlen=64)

    def example(self) -> tuple[Example, Tensor | None]:
        """Generate a conversation about a scene with its image tokens [tiles * M, C], or one without an image."""
        if self.rng.random() < TEXT_SHARE:
            messages, tools = text_conversation(self.rng)
            return self.encoder.encode(messages, tools, []), None
        scene = random_question_scene(self.rng)
        turns = tasks.scene_turns(self.rng, scene, self.rng.choice((1, 1, 2, 3, 4, 6)))
        tiles = [self.codebook.tokens(labels_of(scene))]
        self.recent.append(tiles[0])
        if self.rng.random() < 0.1:  # other tiles come before the thumbnail
            tiles = self.rng.choices(self.recent, k=self.rng.choice((2, 3, 4))) + tiles
        tokens = torch.cat(tiles)
        tokens = tokens + 0.1 * torch.randn(tokens.shape, generator=self.generator)
        return self.encoder.encode(image_conversation(turns, self.rng), [], [len(tiles)]), tokens

    def batch(self, size: int) -> tuple[list[Example], list[Tensor | None]]:
        """Generate `size` examples and their image tokens."""
        pairs = [self.example() for _ in range(size)]
        return [example for example, _ in pairs], [tokens for _, tokens in pairs]


@torch.inference_mode()
def task_accuracy(
    model: InternVL, encoder: Encoder, codebook: Codebook, rng: random.Random, each: int = 40
) -> dict[str, float]:
    """Return by task the share of questions of which every answer token is the most likely one (teacher-forced)."""
    right: dict[str, list[float]] = {}
    for _ in range(each * 5):
        scene = random_question_scene(rng)
        tokens = codebook.tokens(labels_of(scene))
        for turn in tasks.scene_turns(rng, scene, 2):
            right.setdefault(turn.task, []).append(all_right(model, encoder, [turn], rng, tokens))
    for _ in range(each):
        for turn in (tasks.chat(rng), tasks.copy(rng, held_out=True)):
            right.setdefault(turn.task, []).append(all_right(model, encoder, [turn], rng, None))
        tools, turn = tasks.tool_use(rng, held_out=True)
        right.setdefault(turn.task, []).append(all_right(model, encoder, [turn], rng, None, tools))
    return {task: sum(marks) / len(marks) for task, marks in sorted(right.items())}


def all_right(
    model: InternVL,
    encoder: Encoder,
    turns: list[tasks.Turn],
    rng: random.Random,
    tokens: Tensor | None,
    tools: Sequence[dict[str, Any]] = (),
) -> float:
    """Return 1.0 if every answer token is the most likely one, else 0.0."""
    messages = image_conversation(turns, rng)
    if tokens is None:
        messages = [Message(message.role, message.text) for message in messages if message.role != "system"]
    example = encoder.encode(messages, tools, [] if tokens is None else [1])
    example.weights = [weight if weight > QUESTION_WEIGHT else 0.0 for weight in example.weights]
    return float(answer_loss(model, [example], [tokens])[1].item() == 1.0)


def main() -> None:
    """Train for `--minutes`; write the decoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--cooldown", type=float, default=0.4)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--resume", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/language.pt"))
    args = parser.parse_args()
    if not (TOKENIZER / "tokenizer.json").exists():
        write_tokenizer(TOKENIZER)
    launch(worker, args)


def worker(rank: int, args: argparse.Namespace) -> None:
    """Run one process of the training."""
    encoder = Encoder(Tokenizer.from_folder(TOKENIZER))
    model, codebook = nano.build(args.seed), Codebook(nano.CONFIG.language.hidden_size)
    if args.resume:
        model.language_model.load_state_dict(torch.load(args.resume))
    data = OracleData(encoder, codebook, args.seed * 1000 + rank)
    optimizers = Optimizers(model.language_model, lr=args.lr, cooldown=args.cooldown)
    clock = Clock(args.minutes)
    for step in itertools.count():
        progress = clock.progress()
        if progress >= 1:
            break
        examples, tokens = data.batch(args.batch // args.processes)
        loss, right = answer_loss(model, examples, tokens)
        loss.backward()
        average_gradients(optimizers.params)
        optimizers.step(step, progress)
        if rank == 0 and step % 25 == 24:
            print(f"{progress:.1%} step {step} loss {loss:.3f} right {right.mean():.3f}", flush=True)
        if rank == 0 and step % 150 == 149:
            marks = task_accuracy(model, encoder, codebook, random.Random(99))
            print("    " + " ".join(f"{task} {mark:.2f}" for task, mark in marks.items()), flush=True)
            torch.save(model.language_model.state_dict(), args.out)
    if rank == 0:
        torch.save(model.language_model.state_dict(), args.out)


if __name__ == "__main__":
    main()
