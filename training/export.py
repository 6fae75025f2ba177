"""Export the trained model into the package, as a checkpoint in the original layout.

Run: `python -m training.export --weights runs/joint.pt`
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from ternvl.checkpoint.weights import save
from training import nano
from training.language_stage import TOKENIZER

EMBEDDED = Path(__file__).parent.parent / "ternvl" / "embedded" / "ternvl-nano"


def main() -> None:
    """Write the weights in bfloat16, the configuration and the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=Path("runs/joint.pt"))
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="Folder of the one that the run has used.")
    parser.add_argument("--out", type=Path, default=EMBEDDED)
    args = parser.parse_args()
    weights = torch.load(args.weights, map_location="cpu")["weights"]
    model = nano.build()
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    args.out.mkdir(parents=True, exist_ok=True)
    save(model, args.out, dtype=torch.bfloat16)
    if args.tokenizer.resolve() != args.out.resolve():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(args.tokenizer / name, args.out / name)
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
