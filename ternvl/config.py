"""Frozen configurations. What can be derived is a property; CLI flags are generated from the fields.

The three architecture classes are read from a checkpoint by `ternvl.checkpoint.source`; the others are the user's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

OFFICIAL_SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""Default system message of the official template `internvl2_5` (OpenGVLab/InternVL, conversation.py)."""


LORA_DTYPES = ("auto", "float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """An InternViT of the 300M kind: LayerNorm, fused qkv with bias, layer scale, class token."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """A Qwen2.5 decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    """Whether the embeddings serve as output head in a checkpoint that brings no head of its own."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """An InternVL3 model: sizes, how images become tiles, and how a conversation begins and ends."""

    vision: VisionConfig
    language: LanguageConfig
    downsample_ratio: float = 0.5
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    use_thumbnail: bool = True
    system_message: str = OFFICIAL_SYSTEM_MESSAGE
    dtype: str = "bfloat16"
    """Of the checkpoint's tensors: "bfloat16", "float16" or "float32"."""
    defaults: dict[str, float | int | bool] = field(default_factory=dict)
    """Sampling defaults of the checkpoint's `generation_config.json`: temperature, top_p, top_k, repetition_penalty."""

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return self.vision.image_size

    @property
    def tokens_per_tile(self) -> int:
        return int(self.vision.num_patches * self.downsample_ratio**2)

    @property
    def projector_input_size(self) -> int:
        """Channels after the pixel shuffle."""
        return int(self.vision.hidden_size / self.downsample_ratio**2)


@dataclass(frozen=True, slots=True)
class LoadingConfig:
    """How a model is loaded. Field names are the CLI's flags."""

    dtype: str = field(default="auto", metadata={"help": "Precision: auto, bfloat16, float16, float32."})
    quantization: str = field(
        default="none",
        metadata={"help": "Weights: none, int8, int4, or auto: int8 on a CPU where that is fast, for large models."},
    )
    calibration: Path | None = field(
        default=None, metadata={"help": "Folder of images and texts that quantisation is measured on."}
    )
    device: str = field(default="auto", metadata={"help": "Where the model runs: auto, cpu, cuda, cuda:1."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model on the hub."})
    reference: bool = field(default=False, metadata={"help": "Run the slowest correct path instead of the engine."})
    max_dynamic_patch: int | None = field(
        default=None, metadata={"help": "The most tiles an image is cut into; by default as the checkpoint says."}
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How requests are run. Field names are the CLI's flags; spelling follows vLLM where a flag means the same."""

    max_model_len: int = field(
        default=16_384, metadata={"help": "Context length in tokens: prompt and answer together."}
    )
    max_num_seqs: int = field(default=16, metadata={"help": "Sequences that run at the same time."})
    max_num_batched_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Tokens a step computes at most; by default 256 on a CPU, 512 where the model is quantised, 2048 "
            "on a GPU."
        },
    )
    max_num_batched_tiles: int | None = field(
        default=None,
        metadata={"help": "Image tiles encoded together between two steps; by default 1 on a CPU, 16 on a GPU."},
    )
    block_size: int = field(default=16, metadata={"help": "Tokens a block of the KV cache holds."})
    kv_cache_dtype: str = field(
        default="auto",
        metadata={
            "help": "What the KV cache holds: int8, the type that the model computes in (model), or auto, which is "
            "int8 for a quantised model on a CPU."
        },
    )
    kv_cache_memory: int | None = field(
        default=None,
        metadata={
            "help": "Bytes of KV cache; by default enough for all that may run, within a quarter of free memory."
        },
    )
    enable_prefix_caching: bool = field(
        default=True, metadata={"help": "Keep keys and values of prompts for later ones that begin alike."}
    )
    image_cache_memory: int = field(
        default=256 * 1024**2, metadata={"help": "Bytes of image features kept for later requests."}
    )
    speculation: str = field(
        default="auto",
        metadata={
            "help": "Guess tokens of an answer from earlier ones and compute several at once: ngram, off, or auto, "
            "which is ngram on a CPU. Answers stay the same."
        },
    )
    num_speculative_tokens: int = field(
        default=7,
        metadata={"help": "Tokens guessed in a step at most, less one for each further token that it computes."},
    )
    max_queue: int = field(
        default=256, metadata={"help": "Requests that may wait; beyond it a request is refused with 429."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of requests that bring none."})
    max_loras: int = field(
        default=8, metadata={"help": "LoRA adapters in memory; the one longest unused is read again when it is wanted."}
    )
    max_lora_rank: int = field(default=64, metadata={"help": "Rank that a LoRA adapter may have."})
    lora_dtype: str = field(
        default="auto",
        metadata={
            "help": "How LoRA adapters are kept: float32, bfloat16, int8, or auto: int8 beside a quantised model, else "
            "as in their files."
        },
    )


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost. Checked before it is decoded."""

    max_image_bytes: int = field(default=20 * 1024**2, metadata={"help": "Bytes an image may have, encoded."})
    max_image_pixels: int = field(default=100_000_000, metadata={"help": "Pixels an image may have."})
    max_images: int = field(default=16, metadata={"help": "Images a request may hold."})
    fetch_timeout: float = field(default=5.0, metadata={"help": "Seconds an image download may take."})
    max_redirects: int = field(default=3, metadata={"help": "Redirects an image URL may take; each is checked again."})
    allowed_media_domains: tuple[str, ...] = field(
        default=(), metadata={"help": "Only fetch images from these domains (repeatable)."}
    )
    allow_private_addresses: bool = field(
        default=False, metadata={"help": "Also fetch images from loopback and private addresses."}
    )
    allow_local_media: Path | None = field(default=None, metadata={"help": "Allow file:// images below this folder."})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How the HTTP server behaves. Field names are the CLI's flags."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 opens it to the network."})
    port: int = field(default=8000, metadata={"help": "Port to listen on; 0 takes a free one."})
    served_model_name: tuple[str, ...] = field(
        default=(), metadata={"help": "Name of the model in requests and answers; by default its own (repeatable)."}
    )
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Key that clients must send as a bearer token.", "env": "TERNVL_API_KEY"},
    )
    admin_key: str | None = field(
        default=None,
        repr=False,
        metadata={"help": "Key for loading, unloading and uploading LoRA adapters.", "env": "TERNVL_ADMIN_KEY"},
    )
    lora: tuple[str, ...] = field(
        default=(), metadata={"help": "A LoRA adapter as NAME=PATH, the folder that PEFT saved (repeatable)."}
    )
    lora_dir: Path | None = field(
        default=None,
        metadata={"help": "Folder of LoRA adapters, each in a folder of its name; takes uploads."},
    )
    allow_lora_upload: bool = field(
        default=False, metadata={"help": "Take LoRA adapters over HTTP; needs --lora-dir and --admin-key."}
    )
    max_lora_bytes: int = field(default=512 * 1024**2, metadata={"help": "Bytes an uploaded LoRA adapter may have."})
    strict: bool = field(default=False, metadata={"help": "Refuse requests with unknown fields."})
    allowed_origins: tuple[str, ...] = field(
        default=(), metadata={"help": "Web origins whose pages may call the server, or * for all (repeatable)."}
    )
    max_body_bytes: int = field(default=64 * 1024**2, metadata={"help": "Bytes a request body may have."})
    max_concurrent_requests: int = field(
        default=256, metadata={"help": "HTTP requests in work at the same time; more are refused with 429."}
    )
    max_answer_tokens: int = field(
        default=524_288, metadata={"help": "Tokens that all answers of a request may have together (n x max_tokens)."}
    )
    prompt_workers: int = field(default=4, metadata={"help": "Threads that fetch, decode and tile images."})
    body_timeout: float = field(default=60.0, metadata={"help": "Seconds a request body may take to arrive."})
    request_timeout: float | None = field(
        default=None,
        metadata={"help": "Seconds a request may take until its answer ends; by default no limit."},
    )
    drain_timeout: float = field(
        default=30.0, metadata={"help": "Seconds that accepted requests get to finish when the server stops."}
    )
    log_level: str = field(default="info", metadata={"help": "Log level: debug, info, warning or error."})
