"""Native kernels for the CPU. Beside each is its reference in plain torch, which computes where the kernel cannot."""
