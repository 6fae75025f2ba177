"""`ternvl cluster`."""
