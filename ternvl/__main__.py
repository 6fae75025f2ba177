"""`python -m ternvl` runs the command `ternvl`."""

from ternvl.cli import main

main()
