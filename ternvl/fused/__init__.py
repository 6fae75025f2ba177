"""The same network as the CPU runs it: layers fused into stages with packed weights."""
