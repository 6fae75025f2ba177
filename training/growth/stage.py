"""Stage 4: go on from a trained model with a mixture of its old tasks and new ones.

Run: `python -m training.growth.stage --minutes 70` starts from the published checkpoint. A stopped run goes on with
`--continued`, and `--resume runs/growth.pt` starts another one from its weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ternvl.prompt.tokenizer import Tokenizer
from training.export import EMBEDDED
from training.growth.data import MIXTURE, GrowthData, GrowthEncoder
from training.joint_stage import load_weights
from training.loop import add_arguments, parse, train
from training.parallel import launch


def make_data(args: argparse.Namespace, seed: str) -> GrowthData:
    """Return the data of this stage."""
    encoder = GrowthEncoder(Tokenizer.from_folder(args.tokenizer))
    return GrowthData(encoder, seed, args.mixture, text_share=args.text_share, several_share=args.several_share)


def worker(rank: int, args: argparse.Namespace) -> None:
    """Run one process of the training."""
    train(rank, args, make_data, lambda joint, args: load_weights(joint, args.resume))


def mixture(text: str) -> dict[str, float]:
    """Parse the shares of the kinds of pictures, such as "scene=0.7,screen=0.3"."""
    shares = {kind: float(share) for kind, share in (part.split("=") for part in text.split(","))}
    if unknown := shares.keys() - MIXTURE.keys():
        raise argparse.ArgumentTypeError(f"there are no pictures of kind {', '.join(unknown)}")
    return shares


def main() -> None:
    """Train for `--minutes` on several processes; write the model and the heads."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    kinds = "Shares of the kinds of pictures, such as scene=0.7,screen=0.3."
    parser.add_argument("--mixture", type=mixture, default=MIXTURE, help=kinds)
    parser.add_argument("--tokenizer", type=Path, default=EMBEDDED, help="Folder of the tokenizer of --resume.")
    parser.set_defaults(
        minutes=70, resume=EMBEDDED, out=Path("runs/growth.pt"), seed=51, pages=16, lr=1.2e-3, several_share=0.2
    )
    launch(worker, parse(parser))


if __name__ == "__main__":
    main()
