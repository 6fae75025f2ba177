"""The configuration class that transformers loads beside a checkpoint in the original layout."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, Qwen2Config


class InternVLVisionConfig(PretrainedConfig):
    """Sizes of the vision tower; all of them are plain attributes."""

    model_type = "intern_vit_6b"


class InternVLChatConfig(PretrainedConfig):
    """Two configurations in one, under the names of the official files."""

    model_type = "internvl_chat"

    def __init__(self, vision_config: Any = None, llm_config: Any = None, **others: Any) -> None:
        super().__init__(**others)
        self.vision_config = InternVLVisionConfig(**(vision_config or {}))
        self.llm_config = Qwen2Config(**(llm_config or {}))
