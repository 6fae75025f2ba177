"""`python -m ternvl` is `ternvl`."""

from ternvl.cli import main

main()
