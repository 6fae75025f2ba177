"""The machine that a process runs on: its processors, and the limits of its container."""
