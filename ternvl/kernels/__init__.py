"""Native kernels for the CPU beside their references in plain torch, and the one place that picks between the two."""
