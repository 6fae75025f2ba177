"""Stage 1: the vision tower and the projector learn to describe the content of each cell of the image.

Linear heads after the projector classify the image tokens, so whatever they can read is available to the decoder, too.
The heads are not part of the exported model.
Run: `python -m training.vision_stage --minutes 40 --out runs/vision.pt`
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ternvl.model.internvl import InternVL
from training import nano
from training.codebook import SHAPE_INDEX, SLOTS, Codebook, Labels, labels_of
from training.optimizer import Optimizers
from training.scenes import (
    BACKGROUNDS,
    CHARACTERS,
    COLORS,
    Scene,
    TextLine,
    draw,
    random_canvas,
    random_line,
    random_scene,
    visible_colors,
)

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def raw_pixels(image: Image.Image, side: int) -> Tensor:
    """Convert one tile to [S, S, 3] uint8."""
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(side, side, 3)


def normalized(values: Tensor) -> Tensor:
    """Convert tiles [N, S, S, 3] uint8 to [N, 3, S, S], like the server."""
    return ((values.float() / 255 - MEAN.to(values.device)) / STD.to(values.device)).permute(0, 3, 1, 2)


def page_of_text(rng: random.Random) -> Scene:
    """Generate a page of up to four lines of random characters, which gives many labels per picture."""
    width, height = random_canvas(rng, single_tile=True)
    background = rng.choice(BACKGROUNDS)
    colors = visible_colors(background)
    num_lines = rng.choice((1, 2, 3, 3, 4))
    lines: list[TextLine] = []
    for i in range(num_lines):
        text = "".join(rng.choices(CHARACTERS, k=rng.choice((2, 3, 4, 5, 6, 6))))
        band = (i / num_lines + 0.01, (i + 1) / num_lines - 0.01)
        lines.append(random_line(rng, text, rng.choice(colors), band, width, height))
    return Scene(width, height, background, (), tuple(lines), rng.getrandbits(32))


def random_training_scene(rng: random.Random) -> Scene:
    """Generate a scene: half of them are pages of text, the others have shapes, some of them with text."""
    kind = rng.random()
    if kind < 0.5:
        return page_of_text(rng)
    if kind < 0.6:
        text = "".join(rng.choices(CHARACTERS, k=rng.randint(2, 5)))
        return random_scene(rng, 1, text=text)
    return random_scene(rng, rng.choice((0, 1, 1, 2, 2, 3, 4, 5, 6)))


class Heads(nn.Module):
    """Linear classifiers of an image token: shape, colour and characters."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.shape = nn.Linear(hidden_size, len(SHAPE_INDEX) + 1)
        self.color = nn.Linear(hidden_size, len(COLORS) + 1)
        self.chars = nn.Linear(hidden_size, SLOTS * (len(CHARACTERS) + 1))

    def loss(self, tokens: Tensor, labels: Labels) -> Tensor:
        """Return the sum of the three mean cross-entropies. "none" has a low weight, since most cells are empty."""
        total = tokens.new_zeros(())
        for head, target in ((self.shape, labels.shape), (self.color, labels.color), (self.chars, labels.chars)):
            num_classes = head.out_features if target is not labels.chars else head.out_features // SLOTS
            weight = torch.ones(num_classes, device=tokens.device)
            weight[0] = 0.15
            total = total + F.cross_entropy(head(tokens).reshape(-1, num_classes), target.reshape(-1), weight=weight)
        return total

    @torch.no_grad()
    def accuracy(self, tokens: Tensor, labels: Labels) -> dict[str, float]:
        """Return for each head the accuracy on cells with content, and as `..._none` the accuracy on empty cells."""
        result = {}
        for name in ("shape", "color", "chars"):
            target = getattr(labels, name)
            guess = getattr(self, name)(tokens).reshape(*target.shape, -1).argmax(-1)
            has_content = target > 0
            result[name] = (guess[has_content] == target[has_content]).float().mean().item()
            result[f"{name}_none"] = (guess[~has_content] == 0).float().mean().item()
        return result


def stack(labels: list[Labels]) -> Labels:
    """Stack labels along a new first axis."""
    return Labels(*(torch.stack([getattr(x, name) for x in labels]) for name in ("shape", "color", "chars", "edges")))


def perception_loss(tokens: Tensor, labels: Labels, heads: Heads, codebook: Codebook) -> tuple[Tensor, Tensor]:
    """Return the loss of the heads, and the mean squared distance to the codebook's targets."""
    return heads.loss(tokens, labels), F.mse_loss(tokens, codebook.tokens(labels))


def batch(rng: random.Random, size: int) -> tuple[Tensor, Labels]:
    """Generate tiles [B, 3, S, S] and their labels."""
    scenes = [random_training_scene(rng) for _ in range(size)]
    tiles = torch.stack([raw_pixels(draw(scene), nano.CONFIG.tile_size) for scene in scenes])
    return normalized(tiles), stack([labels_of(scene) for scene in scenes])


def main() -> None:
    """Train for `--minutes`; write the tower, the projector and the heads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/vision.pt"))
    args = parser.parse_args()
    rng = random.Random(args.seed)
    model, codebook = nano.build(args.seed), Codebook(nano.CONFIG.language.hidden_size)
    train(model, codebook, rng, args)


class Tower(nn.Module):
    """The modules that this stage trains: vision tower, projector and heads."""

    def __init__(self, model: InternVL) -> None:
        super().__init__()
        self.vision_model, self.mlp1 = model.vision_model, model.mlp1
        self.heads = Heads(model.config.language.hidden_size)


def train(model: InternVL, codebook: Codebook, rng: random.Random, args: argparse.Namespace) -> None:
    """Run the training loop. It prints progress every 50 steps and writes a checkpoint every 100."""
    tower = Tower(model)
    if args.resume:
        tower.load_state_dict(torch.load(args.resume))
    start = time.time()
    optimizers = Optimizers(tower, lr=args.lr)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for step in itertools.count():
        progress = (time.time() - start) / (args.minutes * 60)
        if progress >= 1:
            break
        tiles, labels = batch(rng, args.batch)
        tokens = model.encode_tiles(tiles)
        reading, distance = perception_loss(tokens, labels, tower.heads, codebook)
        (reading + 2 * distance).backward()
        optimizers.step(step, progress)
        if step % 50 == 49:
            marks = " ".join(f"{k} {v:.3f}" for k, v in tower.heads.accuracy(tokens, labels).items())
            print(f"{progress:.1%} step {step} read {reading:.3f} mse {distance:.4f} {marks}", flush=True)
        if step % 100 == 99:
            save(tower, args.out)
    save(tower, args.out)


def save(tower: Tower, path: Path) -> None:
    """Write the weights atomically, so that no incomplete file is ever read."""
    torch.save(tower.state_dict(), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main()
