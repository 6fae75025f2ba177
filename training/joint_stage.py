"""Stage 3: train the vision tower and the decoder together, on drawn pictures, with the tiling that the server uses.

Two processes share the work; their gradients are averaged. A run that was stopped goes on with `--continued`; with
`--resume`, a run starts from another one's file or from an exported checkpoint.
Run: `python -m training.joint_stage --minutes 130 --out runs/joint.pt`
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ternvl.checkpoint import weights
from ternvl.prompt.tokenizer import Tokenizer
from training import nano
from training.language_stage import TOKENIZER
from training.loop import JointModel, add_arguments, parse, train
from training.parallel import launch
from training.pictures import PictureData
from training.tokens import Encoder


def load_weights(joint: JointModel, path: Path) -> bool:
    """Load a run's file, or a checkpoint, which is without the heads; return whether it has them."""
    if path.is_dir():
        joint.model.load_state_dict(weights.load(path, nano.CONFIG, dtype=torch.float32).state_dict())
        return False
    joint.load_state_dict(torch.load(path, map_location="cpu")["weights"])
    return True


def load(joint: JointModel, args: argparse.Namespace) -> bool:
    """Load the weights of stages 1 and 2, or those of `--resume`; return whether they have the heads."""
    if args.resume:
        return load_weights(joint, args.resume)
    tower = torch.load(args.vision)
    joint.heads.load_state_dict({k.removeprefix("heads."): v for k, v in tower.items() if k.startswith("heads.")})
    rest = {k: v for k, v in tower.items() if not k.startswith("heads.")}
    rest |= {f"language_model.{k}": v for k, v in torch.load(args.language).items()}
    joint.model.load_state_dict(rest)
    return True


def make_data(args: argparse.Namespace, seed: str) -> PictureData:
    """Return the data of this stage."""
    encoder = Encoder(Tokenizer.from_folder(TOKENIZER))
    return PictureData(encoder, seed, text_share=args.text_share, several_share=args.several_share)


def worker(rank: int, args: argparse.Namespace) -> None:
    """Run one process of the training."""
    train(rank, args, make_data, load)


def main() -> None:
    """Train for `--minutes` on several processes; write the model and the heads."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--vision", type=Path, default=Path("runs/vision.pt"))
    parser.add_argument("--language", type=Path, default=Path("runs/language.pt"))
    launch(worker, parse(parser))


if __name__ == "__main__":
    main()
