"""`ternvl info` and `ternvl doctor`: what a model needs, and what this machine has."""
