"""Train ternvl-nano from scratch: `python -m training` (about five hours on two cores).

Runs the stages that `training/README.md` describes, then exports the checkpoint and evaluates it. With
`--from-published`, only the last stage runs, from the published checkpoint (an hour and a half).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from training.export import EMBEDDED
from training.language_stage import TOKENIZER


def stage(module: str, *args: str) -> list[str]:
    """Return the command line of a stage."""
    return [sys.executable, "-m", f"training.{module}", *args]


def from_nothing(scale: float) -> None:
    """Run the first three stages, the first two in parallel."""
    separate, joint = ("--minutes", str(75 * scale)), ("--minutes", str(130 * scale))
    falling_rate = ("--lr", "2e-3", "--cooldown", "1.0")
    processes = [
        subprocess.Popen(stage("vision_stage", *separate)),
        subprocess.Popen(stage("language_stage", *separate, *falling_rate)),
    ]
    if any(process.wait() for process in processes):
        sys.exit("A stage of the training failed; its output above says why.")
    subprocess.run(stage("joint_stage", *joint), check=True)


def commands(scale: float, *, from_published: bool) -> list[list[str]]:
    """Return the command lines of what follows the first three stages."""
    start = () if from_published else ("--resume", "runs/joint.pt")
    tokenizer = ("--tokenizer", str(EMBEDDED if from_published else TOKENIZER))  # a newly trained one has other ids
    return [
        stage("growth.stage", "--minutes", str(90 * scale), *start, *tokenizer),
        stage("export", "--weights", "runs/growth.pt", *tokenizer),
        stage("evaluate", "--card"),
        stage("growth.evaluate"),
    ]


def main() -> None:
    """Run all stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Factor for the minutes of every stage.")
    parser.add_argument("--from-published", action="store_true", help="Only go on from the published checkpoint.")
    args = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    if not args.from_published:
        from_nothing(args.scale)
    for command in commands(args.scale, from_published=args.from_published):
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
