"""LoRA adapters: training (`train.py`), inspection (`inspect.py`), merging (`merge.py`), evaluation (`evaluate.py`)."""
