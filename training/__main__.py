"""Train ternvl-nano from scratch: `python -m training` (about three and a half hours on two cores).

Runs the stages that `training/README.md` describes, then exports the checkpoint and evaluates it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def stage(module: str, *args: str) -> list[str]:
    """Return the command line of a stage."""
    return [sys.executable, "-m", f"training.{module}", *args]


def main() -> None:
    """Run all stages in order, the first two in parallel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Factor for the minutes of every stage.")
    args = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    separate, joint = ("--minutes", str(75 * args.scale)), ("--minutes", str(130 * args.scale))
    falling_rate = ("--lr", "2e-3", "--cooldown", "1.0")
    processes = [
        subprocess.Popen(stage("vision_stage", *separate)),
        subprocess.Popen(stage("language_stage", *separate, *falling_rate)),
    ]
    if any(process.wait() for process in processes):
        sys.exit("A stage of the training failed; its output above says why.")
    subprocess.run(stage("joint_stage", *joint), check=True)
    subprocess.run(stage("export"), check=True)
    subprocess.run(stage("evaluate", "--card"), check=True)


if __name__ == "__main__":
    main()
