"""Measures several replicas on one machine: `python -m benchmarks.cluster`."""
