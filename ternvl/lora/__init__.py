"""LoRA adapters: their files, their settings, the pool that keeps them in memory and the bank that applies them."""
