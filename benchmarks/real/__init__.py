"""The parts of `benchmarks/real_weights.py`: the checkpoint and formats of llama.cpp."""
