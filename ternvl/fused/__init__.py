"""The network as the CPU runs it: the same layers, fused into stages with packed weights."""
