"""Stage 3: train the vision tower and the decoder together, on drawn pictures, with the tiling that the server uses.

Two processes share the work; their gradients are averaged. The loss is that of the answers, plus the perception loss of
stage 1 with a falling weight, so that the tower keeps the codebook while the decoder learns to use its features. A run
can be resumed with `--resume`, also from the exported checkpoint.
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
    """Examples, the tiles of all their images, and the labels of each image's last tile."""

    examples: list[Example]
    tiles: Tensor
    """[N, 3, S, S]: the tiles of the examples in order, then those of pictures that only train the vision tower."""
    last_tiles: Tensor
    """Indices in `tiles` of the tiles that show a whole scene."""
    labels: Labels


class PictureData:
    """Generates conversations about drawn scenes, of one tile or several."""

    def __init__(self, encoder: Encoder, seed: int, *, text_share: float, several_share: float) -> None:
        self.encoder, self.rng = encoder, random.Random(seed)
        self.text_share, self.several_share = text_share, several_share

    def batch(self, size: int, num_pages: int) -> Batch:
        """Generate `size` conversations, and `num_pages` pictures that only train the vision tower."""
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
    """Return the loss of the answers plus `perception` times that of the vision tower, and figures to print."""
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


class JointModel(torch.nn.Module):
    """The model, and the heads of stage 1 that are used in training only."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = nano.build(seed)
        self.heads = Heads(nano.CONFIG.language.hidden_size)


def load(joint: JointModel, args: argparse.Namespace) -> None:
    """Load the weights of stages 1 and 2, of an earlier run of this stage, or of a checkpoint without the heads."""
    if args.resume and args.resume.is_dir():
        joint.model.load_state_dict(weights.load(args.resume, nano.CONFIG, dtype=torch.float32).state_dict())
        return
    if args.resume:
        joint.load_state_dict(torch.load(args.resume)["weights"])
        return
    tower = torch.load(args.vision)
    joint.heads.load_state_dict({k.removeprefix("heads."): v for k, v in tower.items() if k.startswith("heads.")})
    rest = {k: v for k, v in tower.items() if not k.startswith("heads.")}
    rest |= {f"language_model.{k}": v for k, v in torch.load(args.language).items()}
    joint.model.load_state_dict(rest)


def worker(rank: int, args: argparse.Namespace) -> None:
    """Run one process of the training."""
    joint, codebook = JointModel(0), Codebook(nano.CONFIG.language.hidden_size)
    load(joint, args)
    encoder = Encoder(Tokenizer.from_folder(TOKENIZER))
    data = PictureData(encoder, args.seed * 1000 + rank, text_share=args.text_share, several_share=args.several_share)
    optimizers = Optimizers(joint, lr=args.lr, cooldown=args.cooldown)
    clock = Clock(args.minutes)
    for step in itertools.count():
        progress = clock.progress()
        if progress >= 1:
            break
        batch = data.batch(args.batch // args.processes, args.pages // args.processes)
        perception = args.perception * max(0.05, 1 - progress)
        loss, report = loss_of(joint.model, joint.heads, codebook, batch, perception)
        loss.backward()
        average_gradients(optimizers.params)
        optimizers.step(step, progress)
        if rank == 0 and step % 25 == 0:
            marks = " ".join(f"{k} {v:.3f}" for k, v in report.items())
            print(f"{progress:.1%} step {step} {marks}", flush=True)
        if rank == 0 and step % 100 == 99:
            save(joint, args.out)
    if rank == 0:
        save(joint, args.out)


def save(joint: JointModel, path: Path) -> None:
    """Write the weights atomically."""
    torch.save({"weights": joint.state_dict()}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def main() -> None:
    """Train for `--minutes` on several processes; write the model and the heads."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    parser.add_argument("--vision", type=Path, default=Path("runs/vision.pt"))
    parser.add_argument("--language", type=Path, default=Path("runs/language.pt"))
    parser.add_argument("--resume", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/joint.pt"))
    args = parser.parse_args()
    launch(worker, args)


if __name__ == "__main__":
    main()
