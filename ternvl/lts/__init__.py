"""Long-term support: lock files, which say what a model's answers depend on and what it answered."""
