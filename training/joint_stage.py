"""Stage 3: eye and decoder together, on drawn pictures, through the tiling that the server uses.

Two processes share the work; their gradients are averaged. The loss is the answers' (plus, fading out, the perception
loss of stage 1, so that the eye keeps its words while the decoder learns to trust it). Resumable: `--resume`, also from
the exported checkpoint.
Run: `python -m training.joint_stage --minutes 130 --out runs/joint.pt`
"""

from __future__ import annotations

import argparse
import itertools
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl.checkpoint import weights
from ternvl.model.internvl import InternVL
from ternvl.prompt.tiling import tiles
from ternvl.prompt.tokenizer import Tokenizer
from training import nano, tasks
from training.codebook import Codebook, Labels, labels_of
from training.decoder import answer_loss
from training.language_stage import TOKENIZER, random_question_scene
from training.optimizer import Optimizers
from training.parallel import Clock, average_gradients, launch
from training.scenes import draw
from training.tokens import Encoder, Example, image_conversation, text_conversation
from training.vision_stage import Heads, perception_loss, pixels, random_training_scene, stack


@dataclass(slots=True)
class Batch:
    """Examples, the tiles of all their images, and what is known of each image's last tile."""

    examples: list[Example]
    tiles: Tensor
    """[N, 3, S, S]: first the examples' tiles in order, then those of pictures that only train the eye."""
    last_tiles: Tensor
    """Rows of `tiles` that show a whole scene."""
    labels: Labels


class PictureData:
    """Conversations about drawn scenes, in one tile or several."""

    def __init__(self, encoder: Encoder, seed: int, *, text_share: float, several_share: float) -> None:
        self.encoder, self.rng = encoder, random.Random(seed)
        self.text_share, self.several_share = text_share, several_share

    def batch(self, size: int, num_pages: int) -> Batch:
        """`size` conversations, and `num_pages` pictures for the eye alone."""
        config, rng = nano.CONFIG, self.rng
        examples: list[Example] = []
        rows: list[Tensor] = []
        last: list[int] = []
        labels: list[Labels] = []
        for _ in range(size):
            if rng.random() < self.text_share:
                examples.append(self.encoder.encode(*text_conversation(rng), 0))
                continue
            scene = random_question_scene(rng, single_tile=rng.random() >= self.several_share)
            turns = tasks.scene_turns(rng, scene, rng.choice((1, 1, 2, 3, 4, 6)))
            parts = tiles(draw(scene), max_num=config.max_dynamic_patch, side=config.tile_size)
            rows += [pixels(part, config.tile_size) for part in parts]
            last.append(len(rows) - 1)
            labels.append(labels_of(scene))
            examples.append(self.encoder.encode(image_conversation(turns, rng), [], len(parts)))
        for _ in range(num_pages):
            scene = random_training_scene(rng)
            last.append(len(rows))
            rows.append(pixels(draw(scene), config.tile_size))
            labels.append(labels_of(scene))
        return Batch(examples, torch.stack(rows), torch.tensor(last), stack(labels))


def loss_of(
    model: InternVL, heads: Heads, codebook: Codebook, batch: Batch, perception: float
) -> tuple[Tensor, dict[str, Any]]:
    """The answers' loss plus `perception` times the eye's; and what to report."""
    features = model.encode_tiles(batch.tiles)  # [N, M, C]
    image_tokens: list[Tensor | None] = []
    row = 0
    for example in batch.examples:
        count = example.num_tiles
        image_tokens.append(features[row : row + count].flatten(0, 1) if count else None)
        row += count
    answer, right = answer_loss(model, batch.examples, image_tokens)
    seen = features[batch.last_tiles]
    reading, distance = perception_loss(seen, batch.labels, heads, codebook)
    report = {"answer": answer.item(), "right": right.item(), "read": reading.item(), "mse": distance.item()}
    report |= {k: v for k, v in heads.accuracy(seen, batch.labels).items() if not k.endswith("none")}
    return answer + perception * (reading + distance), report


class Both(torch.nn.Module):
    """The model and the heads that help it while it learns."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = nano.build(seed)
        self.heads = Heads(nano.CONFIG.language.hidden_size)


def load(both: Both, args: argparse.Namespace) -> None:
    """Where stages 1 and 2, or an earlier run of this one, stopped; or a checkpoint's folder, with heads anew."""
    if args.resume and args.resume.is_dir():
        both.model.load_state_dict(weights.load(args.resume, nano.CONFIG, dtype=torch.float32).state_dict())
        return
    if args.resume:
        both.load_state_dict(torch.load(args.resume)["weights"])
        return
    eye = torch.load(args.vision)
    both.heads.load_state_dict({k.removeprefix("heads."): v for k, v in eye.items() if k.startswith("heads.")})
    rest = {k: v for k, v in eye.items() if not k.startswith("heads.")}
    rest |= {f"language_model.{k}": v for k, v in torch.load(args.language).items()}
    both.model.load_state_dict(rest)


def worker(rank: int, args: argparse.Namespace) -> None:
    """One process of the training."""
    both, codebook = Both(0), Codebook(nano.CONFIG.language.hidden_size)
    load(both, args)
    encoder = Encoder(Tokenizer.from_folder(TOKENIZER))
    data = PictureData(encoder, args.seed * 1000 + rank, text_share=args.text_share, several_share=args.several_share)
    optimizers = Optimizers(both, lr=args.lr, cooldown=args.cooldown)
    clock = Clock(args.minutes)
    for step in itertools.count():
        progress = clock.progress()
        if progress >= 1:
            break
        batch = data.batch(args.batch // args.processes, args.pages // args.processes)
        perception = args.perception * max(0.05, 1 - progress)
        loss, report = loss_of(both.model, both.heads, codebook, batch, perception)
        loss.backward()
        average_gradients(optimizers.params)
        optimizers.step(step, progress)
        if rank == 0 and step % 25 == 0:
            marks = " ".join(f"{k} {v:.3f}" for k, v in report.items())
            print(f"{progress:.1%} step {step} {marks}", flush=True)
        if rank == 0 and step % 100 == 99:
            save(both, args.out)
    if rank == 0:
        save(both, args.out)


def save(both: Both, path: Path) -> None:
    """Write atomically."""
    torch.save({"weights": both.state_dict()}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def main() -> None:
    """Train for a while on all cores; write model and heads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pages", type=int, default=24, help="Pictures a step that train the eye alone.")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--cooldown", type=float, default=1.0)
    parser.add_argument("--perception", type=float, default=0.5)
    parser.add_argument("--text-share", type=float, default=0.1)
    parser.add_argument("--several-share", type=float, default=0.22)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--vision", type=Path, default=Path("runs/vision.pt"))
    parser.add_argument("--language", type=Path, default=Path("runs/language.pt"))
    parser.add_argument("--resume", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/joint.pt"))
    args = parser.parse_args()
    launch(worker, args)


if __name__ == "__main__":
    main()
