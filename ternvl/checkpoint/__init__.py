"""Checkpoints: finding them, reading their configuration, and reading and writing their weights."""
