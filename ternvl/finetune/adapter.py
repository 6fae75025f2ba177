"""The adapter while it is trained: peft puts it into the model, and its own form is what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternvl.errors import ConfigError
from ternvl.finetune.durable import write_json, write_tensors
from ternvl.finetune.settings import AdapterConfig
from ternvl.finetune.targets import TARGETS
from ternvl.model.internvl import InternVL


def require(module: str) -> None:
    """Raises ConfigError that says how to install what the extra `finetune` brings, where it is not there."""
    try:
        __import__(module)
    except ImportError as error:
        raise ConfigError(
            f"Training needs {module}, which is not installed: pip install 'ternvl[finetune]', or scripts/install "
            f"finetune in the repository ({error})."
        ) from error


class Adapter:
    """LoRA matrices beside a model's frozen weights."""

    def __init__(self, model: InternVL, config: AdapterConfig, *, base: str, seed: int) -> None:
        """Changes `model` in place. `base` is the model's name, which the adapter will bear."""
        require("peft")
        if "head" in config.target and model.language_model.is_tied:
            raise ConfigError(f"target holds head, but the head of {base} is its embeddings, which are not trained.")
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft multiplies with it, a fraction serves
            lora_dropout=config.dropout,
            use_rslora=config.rslora,
            target_modules=[end for part in config.target for end in TARGETS[part]],
        )
        self.model, self._base = model, base
        self._peft = get_peft_model(model, lora)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that are trained, in float32 whatever the model's type."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """A copy of its tensors, under peft's names."""
        from peft import get_peft_model_state_dict

        return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(self._peft).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of `state`."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._peft, dict(state))

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` in peft's form, each whole or not at all."""
        config: dict[str, Any] = self._peft.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": self._base, "inference_mode": True}
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.items())}
        config["auto_mapping"] = None  # peft's note of which Python class it found
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        write_tensors(folder / "adapter_model.safetensors", tensors)
        write_json(folder / "adapter_config.json", json.loads(json.dumps(config, default=str)))
