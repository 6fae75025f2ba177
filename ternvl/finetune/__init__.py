"""LoRA adapters: training one (`train.py`), and what can be done with one that is there (`adapters.py`)."""
