"""InternVL3: a vision tower whose tile features replace the context tokens of a decoder's prompt.

Read `vision.py`, then `language.py`, then this. Source: OpenGVLab/InternVL, `modeling_internvl_chat.py`.

Shapes: N tiles, M tokens a tile, S side of a tile in pixels, T tokens, C the decoder's hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ternvl.config import ModelConfig
from ternvl.model.attention import Attention, CausalAttention
from ternvl.model.language import LanguageModel
from ternvl.model.vision import VisionModel, pixel_shuffle, projector
from ternvl.types import Prompt


class InternVL(nn.Module):
    """The whole model as plain modules. It holds its weights and no other state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision)
        self.mlp1 = projector(config)
        self.language_model = LanguageModel(config.language)

    @property
    def dtype(self) -> torch.dtype:
        """The type the model computes in. Matrices may be stored in another type."""
        return self.language_model.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.language_model.model.norm.weight.device

    def encode_tiles(self, pixel_values: Tensor) -> Tensor:
        """Compute the embeddings of the context tokens of tiles: [N, 3, S, S] -> [N, M, C]."""
        patches = self.vision_model(pixel_values.to(self.dtype))
        return self.mlp1(pixel_shuffle(patches, self.config.downsample_ratio))  # type: ignore[no-any-return]

    def embed(self, token_ids: Tensor) -> Tensor:
        """Look up token ids [T] -> embeddings [T, C]. The caller replaces those of context tokens."""
        return self.language_model.model.embed_tokens(token_ids)  # type: ignore[no-any-return]

    def decode(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Run the decoder: embeddings [T, C] at positions [T] -> final hidden states [T, C]."""
        return self.language_model.model(embeddings, positions, attention)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output head: hidden states [..., C] -> logits [..., V] in float32."""
        return self.language_model.lm_head(hidden).float()  # type: ignore[no-any-return]

    @torch.inference_mode()
    def forward(self, prompt: Prompt) -> Tensor:
        """Compute the logits [T, V] of a whole prompt from scratch, on the shortest path and the slowest."""
        return self.logits(self.hidden(prompt))

    @torch.inference_mode()
    def hidden(self, prompt: Prompt, attention: Attention | None = None) -> Tensor:
        """Compute the final hidden states [T, C] of a whole prompt from scratch.

        Without `attention`, it is exact causal attention that keeps no cache.
        """
        device = self.device
        embeddings = self.embed(torch.tensor(prompt.token_ids, device=device))
        if prompt.pixel_values is not None:
            features = self.encode_tiles(prompt.pixel_values.to(device))  # [N, M, C]
            for image in prompt.images:
                rows = features[image.first_tile : image.first_tile + image.num_tiles]
                embeddings[image.start : image.stop] = rows.flatten(0, 1)
        positions = torch.arange(prompt.num_tokens, device=device)
        return self.decode(embeddings, positions, attention or CausalAttention())


def num_parameters(config: ModelConfig) -> int:
    """Return the number of parameters of a model of these sizes. An output head that is tied counts once."""
    with torch.device("meta"):
        model = InternVL(config)
    head = model.language_model.lm_head.weight.numel() if config.language.tie_word_embeddings else 0
    return sum(parameter.numel() for parameter in model.parameters()) - head
