"""Make ternvl-nano from nothing: `python -m training` (about three and a half hours on two cores).

Runs the stages as `training/README.md` describes them, then exports the checkpoint and evaluates it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path


def stage(module: str, *args: str) -> list[str]:
    """The command line of a stage."""
    return [sys.executable, "-m", f"training.{module}", *args]


def main() -> None:
    """All stages, in order; the first two side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies the minutes of every stage.")
    args = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    apart, together = ("--minutes", str(75 * args.scale)), ("--minutes", str(130 * args.scale))
    falling = ("--lr", "2e-3", "--cooldown", "1.0")
    pair = [
        subprocess.Popen(stage("vision_stage", *apart)),
        subprocess.Popen(stage("language_stage", *apart, *falling)),
    ]
    if any(process.wait() for process in pair):
        sys.exit("A stage failed; see its output above.")
    subprocess.run(stage("joint_stage", *together), check=True)
    subprocess.run(stage("export"), check=True)
    subprocess.run(stage("evaluate", "--card"), check=True)


if __name__ == "__main__":
    main()
