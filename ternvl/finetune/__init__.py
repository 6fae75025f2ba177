"""LoRA adapters: training one (`train.py`), and what is done with one that is there (`inspect.py`, `merge.py`,
`evaluate.py`)."""
