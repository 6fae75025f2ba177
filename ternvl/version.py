"""The version of ternvl. `pyproject.toml` and everything else read it from here."""

__version__ = "0.1.0"
