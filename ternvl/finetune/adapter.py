"""An adapter while it is trained: peft inserts it into the model, and the saved files are in peft's format."""

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
    """Raise ConfigError, with the command that installs the extra `finetune`, if `module` cannot be imported."""
    try:
        __import__(module)
    except ImportError as error:
        raise ConfigError(
            f"Training needs {module}, which is not installed: pip install 'ternvl[finetune]', or scripts/install "
            f"finetune in the repository ({error})."
        ) from error


class TrainedAdapter:
    """LoRA matrices that are trained beside a model's frozen weights."""

    def __init__(self, model: InternVL, config: AdapterConfig, *, base: str, seed: int) -> None:
        """Inserts the matrices into `model` in place. `base` is the model's name, which the saved adapter records.

        Raises ConfigError if peft is missing, or if the head is targeted but shares its weights with the embeddings.
        """
        require("peft")
        if "head" in config.target and model.language_model.is_tied:
            raise ConfigError(
                f"target holds head, but the head of {base} is tied to the embeddings, which are not trained."
            )
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only multiplies by it, so a fraction works
            lora_dropout=config.dropout,
            use_rslora=config.rslora,
            target_modules=[end for part in config.target for end in TARGETS[part]],
        )
        self.model, self._base = model, base
        self._peft = get_peft_model(model, lora)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters, in float32 whatever the model's dtype."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the adapter's tensors under peft's names."""
        from peft import get_peft_model_state_dict

        return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(self._peft).items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the adapter's tensors by those of `state`."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self._peft, dict(state))

    def save(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json` in peft's format, each of them atomically."""
        config: dict[str, Any] = self._peft.peft_config["default"].to_dict()
        config |= {"base_model_name_or_path": self._base, "inference_mode": True}
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in sorted(config.items())}
        config["auto_mapping"] = None  # records the base model's Python class, which peft does not need
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        write_tensors(folder / "adapter_model.safetensors", tensors)
        write_json(folder / "adapter_config.json", json.loads(json.dumps(config, default=str)))
