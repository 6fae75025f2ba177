"""LoRA adapters: their files and settings, the pool that keeps them in memory, and the bank that applies them."""
