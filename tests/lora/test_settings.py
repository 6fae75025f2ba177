"""What `adapter_config.json` asks for: served, or refused by the name of its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ternvl.errors import AdapterError
from tests.lora import peft_adapters
from tests.lora.peft_adapters import read_small, small

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "dora": ({"use_dora": True}, "use_dora", "unsupported_adapter"),
    "bias": ({"bias": "all"}, "bias", "unsupported_adapter"),
    "lora_bias": ({"lora_bias": True}, "lora_bias", "unsupported_adapter"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "modules_to_save", "unsupported_adapter"),
    "other kinds": ({"peft_type": "IA3"}, "IA3", "unsupported_adapter"),
    "fan_in_fan_out": ({"fan_in_fan_out": True}, "fan_in_fan_out", "unsupported_adapter"),
    "changed base": ({"init_lora_weights": "pissa"}, "pissa", "unsupported_adapter"),
    "what comes later": ({"use_something_new": True}, "use_something_new", "unsupported_adapter"),
    "slow patterns": ({"alpha_pattern": {"(a+)+b": 2}}, "(a+)+b", "unsupported_adapter"),
    "no pattern": ({"rank_pattern": {"(": 2}}, "rank_pattern", "invalid_adapter"),
    "no rank": ({"r": 0}, "rank 0", "invalid_adapter"),
    "another rank": ({"r": 5}, "for [5, ", "base_model_mismatch"),
    "another base": (
        {"base_model_name_or_path": "OpenGVLab/InternVL2_5-1B"}, "InternVL2_5-1B", "base_model_mismatch"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "words", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], words: str, code: str) -> None:
    folder = peft_adapters.rewrite(small(tmp_path), config=fields)
    with pytest.raises(AdapterError) as caught:
        read_small(folder, base="OpenGVLab/InternVL3-1B")
    assert words in str(caught.value)
    assert "own" in str(caught.value)
    assert caught.value.code == code


def test_an_adapter_of_the_same_base_under_another_of_its_names(tmp_path: Path) -> None:
    folder = peft_adapters.rewrite(small(tmp_path), config={"base_model_name_or_path": "OpenGVLab/InternVL3-1B-hf"})
    assert read_small(folder, base="internvl3-1b-instruct").modules
